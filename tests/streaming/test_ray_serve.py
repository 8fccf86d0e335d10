"""The same app under Ray Serve, by the one command that the module names, on a cluster of the
test's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from benchmarks.local_cluster import LocalCluster, free_port
from omniforcing.serving.protocol.messages import SUBPROTOCOL
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from tests.support.ray_cluster import environment
from tests.support.realtime_client import RealtimeClient
from tests.support.releases import Champions
from tests.support.serving import begin, frames_in, hear, play, say, take
from tests.support.streams import PROMPT, file_of, settled

pytestmark = pytest.mark.ray
SERVE = str(Path(sys.executable).with_name("serve"))
CONNECTED = "from ray import serve; import ray; ray.init(log_to_driver=False)"
DELETE = f"{CONNECTED}; serve.delete('default')"


class Deployment:
    """The app under Ray Serve, following a champion; what its commands print lies in ``log``."""

    def __init__(self, cluster: str, champions: Champions, log: Path) -> None:
        self.champions, self.log, self.address = champions, log, f"127.0.0.1:{free_port()}"
        ours = {"RAY_ADDRESS": cluster, "MLFLOW_TRACKING_URI": champions.store}
        self._environment = environment() | ours

    def do(self, *words: str, attempts: int = 1) -> None:
        """Run a command of the cluster's, with its interpreter."""
        for _ in range(attempts):
            with self.log.open("a") as log:
                done = subprocess.run(
                    [sys.executable, *words],
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    timeout=400,
                )
            if done.returncode == 0:
                return
        raise AssertionError(self.log.read_text()[-3000:])

    def deploying(self, drain: int) -> list[str]:
        """The words that run the app, or replace it if the drain is another one than before."""
        app = "omniforcing.serving.ray_serve:app"
        arguments = [f"artifact={self.champions.alias}", "follow=0.5", f"drain={drain}"]
        return [SERVE, "run", "--non-blocking", app, *arguments]

    def answers(self) -> bool:
        return bool(self.status())

    def status(self) -> dict[str, Any]:
        """What ``/ready`` tells of a replica that would take a session; nothing if none would."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/ready", timeout=2) as answer:
                told: dict[str, Any] = json.load(answer)
                return told
        except OSError:
            return {}

    def connect(self) -> ClientConnection:
        options: dict[str, Any] = {"proxy": None, "compression": None, "legacy": True}
        return connect(f"ws://{self.address}/stream", subprotocols=[SUBPROTOCOL], **options)


@pytest.fixture(scope="module")
def deployment(
    artifact: Artifact,
    ray_cluster: LocalCluster,
    database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    champions = Champions(tmp_path_factory.mktemp("store"), database)
    champions.promote(artifact.folder)
    log = tmp_path_factory.mktemp("serve") / "log"
    running = Deployment(ray_cluster.address, champions, log)
    host, port = running.address.split(":")
    # It waits a minute for the proxy, which a busy machine takes longer to start; a second call
    # finds it.
    running.do(SERVE, "start", "--http-host", host, "--http-port", port, attempts=3)
    running.do(*running.deploying(drain=1))
    assert settled(running.answers, 180), running.log.read_text()[-3000:]
    yield running
    running.do("-c", f"{CONNECTED}; serve.shutdown()")  # its replica has a CPU that others need


def test_a_stream_through_ray_serve_is_whole(deployment: Deployment) -> None:
    with deployment.connect() as client:
        media, messages = play(client, 3)
    assert messages[-1]["reason"] == "ended" and frames_in(media) == 73


def test_the_second_wire_through_ray_serve_is_the_same_stream(deployment: Deployment) -> None:
    with deployment.connect() as client:
        media, _ = play(client, 3, seed=2)
    with RealtimeClient(f"http://{deployment.address}") as viewer:
        assert viewer.play(prompt=PROMPT, num_frames=73, seed=2) == media


def test_open_streams_of_a_replica_end_on_their_model_and_later_ones_get_the_new_champion(
    deployment: Deployment, engine: Engine, other_artifact: Artifact
) -> None:
    clients = [deployment.connect() for _ in range(3)]
    begun = [begin(client, 4, seed) for seed, client in enumerate(clients)]
    newer = deployment.champions.promote(other_artifact.folder)
    assert settled(lambda: deployment.status()["version"] == newer, 60), deployment.status()
    with deployment.connect() as later:
        media, _ = play(later, 4, seed=0)
    assert media == file_of(Engine(other_artifact), 4, seed=0)
    for seed, (client, media) in enumerate(zip(clients, begun, strict=True)):
        say(client, "position", seconds=600)
        media += take(client)[0]
        client.close()
        assert media == file_of(engine, 4, seed)


@pytest.mark.parametrize("end", ["replaced", "deleted"])
def test_streams_of_a_replica_that_is_stopped_go_on_for_a_while_and_end_in_order(
    deployment: Deployment, end: str
) -> None:
    words = deployment.deploying(drain=2) if end == "replaced" else ["-c", DELETE]
    with deployment.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=600, paced=False)
        hear(client, "block")
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(deployment.do, *words)
            media, messages = take(client)
            assert messages[-1]["reason"] == "draining" and frames_in(media) > 48
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=10)
            assert client.close_code == 1001
            done.result()
    assert deployment.answers() == (end == "replaced")
