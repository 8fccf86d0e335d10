"""A server in a process of its own, for tests that need a real one, and a client that speaks its
protocol.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from websockets.sync.client import ClientConnection, connect

from omniforcing.serving.protocol.messages import SUBPROTOCOL
from tests.support.streams import PROMPT


@dataclass
class Server:
    """A running server; what it prints lies in ``log``."""

    process: subprocess.Popen[str]
    address: str
    log: Path
    idle_threads: int = 0

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and body of a GET."""
        request = urllib.request.Request(self.address + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def figure(self, name: str) -> float:
        """The sum of a metric over its labels; 0 if there is none yet."""
        lines = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return sum(map(float, lines))

    def connect(self, *subprotocols: str, **options: Any) -> ClientConnection:
        """A WebSocket to it, at ``path`` if that is given."""
        address = self.address.replace("http", "ws") + options.pop("path", "/stream")
        return connect(
            address,
            subprotocols=[SUBPROTOCOL, *subprotocols],
            proxy=None,
            compression=None,
            legacy=True,
            **options,
        )

    def threads(self) -> int:
        """Of its process."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def memory(self) -> int:
        """Resident bytes of its process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )

    def files(self) -> int:
        """Open file descriptors of its process."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def server(artifact: Path, folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """``omniforcing serve`` on a free port, until the body is over."""
    words = ["serve", "--artifact", str(artifact), "--port", "0", *options]
    with listening(words, folder, **environment) as running:
        yield running


@contextmanager
def listening(command: list[str], folder: Path, **environment: str) -> Iterator[Server]:
    """A command of ``omniforcing`` that serves, until the body is over."""
    log = folder / "server.log"
    words = [sys.executable, "-m", "omniforcing", *command]
    with log.open("w") as errors:
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening at "), log.read_text()
        yield Server(process, line.removeprefix("listening at ").strip(), log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        process.kill()
        process.stdout.close()


def say(socket: ClientConnection, kind: str, **values: Any) -> None:
    """Send a control message."""
    socket.send(json.dumps({"type": kind, **values}))


def hear(socket: ClientConnection, kind: str, seconds: float = 30) -> dict[str, Any]:
    """The next control message of a kind; other messages and media are passed over.

    Raises:
        AssertionError: if an error comes instead.
    """
    while True:
        data = socket.recv(timeout=seconds)
        if isinstance(data, str):
            message: dict[str, Any] = json.loads(data)
            assert message["type"] in (kind, "error") or message["type"] != "ended", message
            if message["type"] == kind:
                return message
            assert message["type"] != "error", message


def play(
    client: ClientConnection, seconds: float, **values: Any
) -> tuple[bytes, list[dict[str, Any]]]:
    """Start a stream and take all of it: the media and the control messages."""
    hear(client, "hello")
    say(client, "start", prompt=PROMPT, seconds=seconds, paced=False, **values)
    return take(client)


def begin(client: ClientConnection, seconds: int, seed: int) -> bytes:
    """Start a stream whose player stands still, and take the media that come all the same.

    They are all but the last second, if that is the fourth.
    """
    hear(client, "hello")
    say(client, "start", prompt=PROMPT, seconds=seconds, seed=seed)
    media = b""
    for _ in range(seconds):
        hear(client, "block")
        piece = client.recv(timeout=60)
        assert isinstance(piece, bytes)
        media += piece
    return media


def take(client: ClientConnection) -> tuple[bytes, list[dict[str, Any]]]:
    """Media and control messages of a stream until it has ended."""
    media, messages = b"", []
    while True:
        data = client.recv(timeout=60)
        if isinstance(data, bytes):
            media += data
            continue
        messages.append(json.loads(data))
        if messages[-1]["type"] == "ended":
            return media, messages


def frames_in(media: bytes) -> int:
    """Frames in a fragmented MP4."""
    with av.open(io.BytesIO(media)) as container:
        return sum(1 for _ in container.decode(video=0))
