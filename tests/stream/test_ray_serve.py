"""The same app under Ray Serve, by the one command that the module names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from omniforcing.stream.artifact import Artifact
from omniforcing.stream.protocol import SUBPROTOCOL
from tests.stream.test_live import settled
from tests.stream.test_serve import frames_in, play

pytestmark = pytest.mark.ray
ADDRESS = "127.0.0.1:8000"


def answers() -> bool:
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def deployment(artifact: Artifact, tmp_path: Path) -> Iterator[None]:
    serve = Path(sys.executable).with_name("serve")
    words = [str(serve), "run", "omniforcing.stream.ray_serve:app", f"artifact={artifact.folder}"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        assert settled(answers, 120), (tmp_path / "log").read_text()[-3000:]
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # Ray's own shutdown takes its time on a busy machine
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.usefixtures("deployment")
def test_a_stream_through_ray_serve_is_whole() -> None:
    with connect(f"ws://{ADDRESS}/stream", subprotocols=[SUBPROTOCOL], proxy=None, compression=None) as client:
        media, messages = play(client, 3)
    assert messages[-1]["reason"] == "ended" and frames_in(media) == 73
