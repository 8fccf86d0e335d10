"""A server of two artifacts, and prompts that wait for their second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from omniforcing.core.files import read_json, write_json, write_manifest
from omniforcing.serving.session import MOST_WAITING
from omniforcing.streaming.artifact import SETTINGS_FILE, Artifact
from tests.support.serving import Server, hear, play, say, server
from tests.support.streams import PROMPT

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def serving(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    other = Path(shutil.copytree(artifact.folder, tmp_path_factory.mktemp("other") / "artifact"))
    settings = {**read_json(other / SETTINGS_FILE), "sigmas": [1.0, 0.75, 0.5]}
    write_json(other / SETTINGS_FILE, settings)
    write_manifest(other)
    folder = tmp_path_factory.mktemp("server")
    with server(artifact.folder, folder, "--beside", str(other)) as running:
        yield running


def test_two_artifacts_stream_from_one_server(serving: Server) -> None:
    status, body = serving.get("/ready")
    first, second = json.loads(body)["streams"]
    assert status == 200 and (first["path"], second["path"]) == ("stream", "beside")
    assert first["method"] == "2 steps, window of 2 s"
    assert second["method"] == "3 steps, window of 2 s" and first["artifact"] != second["artifact"]
    streams = []
    for path in ("/stream", "/beside", "/beside"):
        with serving.connect(path=path) as client:
            streams.append(play(client, 1, seed=5)[0])
    assert streams[0] != streams[1] == streams[2]
    with serving.connect(), serving.connect(path="/beside"):
        assert serving.figure("omniforcing_sessions") == 2


def test_a_prompt_waits_for_its_second(serving: Server) -> None:
    with serving.connect(path="/beside") as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=600)
        for number, at in ((1, 3.0), (2, 5.5), (3, 0)):
            say(client, "prompt", id=number, prompt=f"ball {number}", at=at)
            hear(client, "received")
        say(client, "position", seconds=6)
        applied = [hear(client, "applied") for _ in range(3)]
        assert [each["id"] for each in applied] == [3, 1, 2], "what is past begins with the next"
        assert [each["block"] for each in applied[1:]] == [4, 7]
        assert applied[2]["seconds"] == pytest.approx(6 + 1 / 24)


def test_so_many_prompts_may_wait(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=600)
        for number in range(MOST_WAITING):
            say(client, "prompt", id=number, prompt=PROMPT, at=500)
            hear(client, "received")
        say(client, "prompt", id=MOST_WAITING, prompt=PROMPT, at=500)
        with pytest.raises(AssertionError, match=r"serving\.too-many-waiting"):
            hear(client, "received")
        say(client, "stop")
        hear(client, "ended")


def test_without_a_second_artifact_there_is_no_second_path(
    artifact: Artifact, tmp_path: Path
) -> None:
    with server(artifact.folder, tmp_path) as running:
        assert len(json.loads(running.get("/ready")[1])["streams"]) == 1
        with pytest.raises(InvalidStatus):
            running.connect(path="/beside")
