"""The kept student through the real commands: a clip, a server, a page in a browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import av
import pytest

from omniforcing.cli import main
from omniforcing.core.files import folder_digest
from omniforcing.media.marking import read_marks
from omniforcing.pocket import foundation
from omniforcing.streaming.artifact import Artifact
from tests.support.refusals import refused
from tests.support.serving import frames_in, hear, listening, play, take
from tests.support.streams import settled

pytestmark = pytest.mark.extended
PROMPT = "a red ball bounces high on the floor"


def no_screen() -> dict[str, str]:
    """Variables of a machine on which no browser opens."""
    return {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}


def said_of_the_kept_student(text: str) -> bool:
    digest = folder_digest(Artifact.kept().folder)
    return f"kept student of preset pocket (artifact {digest[:12]}" in text


def test_a_clip_without_an_artifact_is_the_kept_students(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.mp4"
    with pytest.raises(SystemExit) as end:
        main(["stream", "--prompt", PROMPT, "--seconds", "1", "--out", str(out), "--json"])
    assert not end.value.code
    shown = capsys.readouterr()
    assert said_of_the_kept_student(shown.err)
    assert json.loads(shown.out)["width"] == 64
    with av.open(str(out)) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 25


def test_a_server_without_an_artifact_streams_the_kept_student(tmp_path: Path) -> None:
    with listening(["serve", "--port", "0"], tmp_path) as running:
        with running.connect() as client:
            media, messages = play(client, 1)
        assert frames_in(media) == 25 and messages[-1]["reason"] == "ended"
        assert said_of_the_kept_student(running.log.read_text())
    recorded = tmp_path / "recorded.mp4"
    recorded.write_bytes(media)
    assert read_marks(recorded)["artifact"] == folder_digest(Artifact.kept().folder)


def test_a_demo_opens_its_page_in_the_browser_and_streams_a_typed_prompt(tmp_path: Path) -> None:
    """The browser here is a script that notes the address and stays open, as some do."""
    browser, visited = tmp_path / "browser", tmp_path / "visited"
    browser.write_text(f'#!/bin/sh\necho "$1" > {visited}\nexec sleep 60\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    with listening(["demo"], tmp_path, BROWSER=f"{browser} %s") as running:
        assert settled(lambda: visited.is_file() and visited.read_text() != "", 20)
        assert visited.read_text().strip() == running.address
        status, page = running.get("/")
        assert status == 200 and "<title>" in page
        with running.connect(origin=running.address) as client:
            assert hear(client, "hello")
            client.send(json.dumps({"type": "start", "prompt": PROMPT, "seconds": 1}))
            media, messages = take(client)
        assert frames_in(media) == 25 and messages[-1]["reason"] == "ended"


def test_a_demo_without_a_browser_says_where_the_page_is(tmp_path: Path) -> None:
    with listening(["demo"], tmp_path, **no_screen()) as running:
        sentence = f"no browser could be opened here; open {running.address} in one"
        assert settled(lambda: sentence in running.log.read_text(), 20)
        assert running.get("/health")[0] == 200
    with listening(["demo", "--no-browser"], tmp_path, BROWSER="false %s") as running:
        assert running.get("/health")[0] == 200
        assert "browser" not in running.log.read_text()


def test_damaged_kept_files_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(foundation.KEPT, tmp_path / "kept")
    (tmp_path / "kept" / "codec" / "codec.json").write_text("{}")
    monkeypatch.setattr(foundation, "KEPT", tmp_path / "kept")
    for words in (["demo"], ["serve", "--port", "0"], ["stream", "--prompt=a", "--out=a.mp4"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1
        refused(said, "pocket.damaged-student", "codec.json", "install omniforcing again")


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = subprocess.run(
            [sys.executable, "-m", "omniforcing", "demo", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **no_screen()},
        )
    assert answer.returncode == 2
    refused(answer.stderr, "serving.port-in-use", f"port {port} of 127.0.0.1")
    assert answer.stderr.count("\n") == 1
