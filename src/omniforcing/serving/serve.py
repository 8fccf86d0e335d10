"""``omniforcing serve`` and ``demo``: the page and its WebSocket, by default for this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from omniforcing.core.environment import TOKEN_VARIABLE
from omniforcing.core.errors import OmniForcingError
from omniforcing.serving.app import build_app
from omniforcing.serving.offline.teacher import TEACHER, OfflineTeacher
from omniforcing.serving.protocol.messages import Limits
from omniforcing.serving.rollover import Alias, Rollover
from omniforcing.serving.service import ServedModel, Service
from omniforcing.streaming.command import EngineOptions, open_engine
from omniforcing.streaming.engine import Engine

# Largest message that is read at all. Above the largest image that is accepted, so that an image
# which is somewhat too large is refused with a sentence instead of a broken connection.
MESSAGE_BYTES = 12_000_000
PING_SECONDS = 20.0  # between two pings to a client, or less if the limit for idle ones is small
ANY_ADDRESS = ("0.0.0.0", "::")


class _Server(uvicorn.Server):
    """uvicorn's server, which on the first signal drains sessions before it closes connections."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service, self._drain_seconds = service, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining or self._loop is None:
            super().handle_exit(sig, frame)  # a second signal does not wait
            return
        self._service.draining = True
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop)

    async def _drain(self) -> None:
        await self._service.drain(self._drain_seconds)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        OmniForcingError: if the port is taken or the address is not one of this machine.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OverflowError as error:
        raise OmniForcingError(
            "serving.cannot-listen", f"there is no port {port}; choose --port from 1 to 65535"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OmniForcingError(
                "serving.port-in-use",
                f"port {port} of {host} is in use; choose another one with --port",
            ) from error
        raise OmniForcingError(
            "serving.cannot-listen",
            f"cannot listen at {host}, port {port}: {error}; choose another --host or --port",
        ) from error


def own_origins(names: Sequence[str], port: int) -> list[str]:
    """Return the origins of our page by the names of this machine; browsers leave out port 80."""
    ends = (f":{port}", "") if port == 80 else (f":{port}",)
    return [f"http://{name}{end}" for name in names for end in ends]


def serve_streams(
    engine: EngineOptions,
    limits: Limits,
    host: str,
    port: int,
    origins: Sequence[str] = (),
    drain_seconds: float = 10.0,
    announce: Callable[[str], None] | None = None,
    follow: float | None = None,
    beside: Path | None = None,
) -> None:
    """Serve until a signal comes.

    Args:
        engine: which artifact streams, and how.
        limits: what clients are allowed.
        host: address to listen at.
        port: port to listen at; 0 for any that is free.
        origins: origins of pages that are allowed beside our own.
        drain_seconds: what streams get after SIGTERM.
        announce: called with the page's address when browsers can connect to it.
        follow: seconds between two looks at the alias that names the artifact, whose model new
            streams get; None to keep to the first model.
        beside: a second artifact, shown next to the first, or ``teacher``; the options of
            ``engine`` hold for it too, but its LoRAs.

    Raises:
        OmniForcingError: if an option, the artifact or the address cannot be used.
    """
    rollover = None if follow is None else _follow(engine, follow)
    listening = listen(host, port)
    with listening:
        host, port = listening.getsockname()[:2]
        names = ["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host]
        if host in ANY_ADDRESS:
            names = [socket.gethostname(), socket.getfqdn(), *names]
        allowed = [*origins, *own_origins(names, port)]
        token = os.environ.get(TOKEN_VARIABLE) or None
        model = rollover.first() if rollover else ServedModel.of(open_engine(engine))
        service = Service(
            model,
            limits,
            allowed,
            token,
            any_address=host in ANY_ADDRESS,
            beside=_open_beside(engine, beside),
        )
        del model  # else it would stay in memory after a roll-over
        config = uvicorn.Config(
            build_app(service, rollover),
            log_level="warning",
            ws_max_size=MESSAGE_BYTES,
            ws_per_message_deflate=False,
            # Browsers answer pings by themselves, also for a page that sleeps.
            ws_ping_interval=min(PING_SECONDS, limits.idle_seconds / 2),
            ws_ping_timeout=limits.idle_seconds,
            lifespan="on",
        )
        address = f"http://{names[-1]}:{port}"
        print(f"listening at {address}", flush=True)
        if announce is not None:
            announce(address)
        _Server(config, service, drain_seconds).run(sockets=[listening])


def _follow(engine: EngineOptions, seconds: float) -> Rollover:
    def load(folder: Path) -> Engine:
        return open_engine(dataclasses.replace(engine, artifact=folder))

    return Rollover(Alias.of(engine.artifact, seconds), seconds, load)


def _open_beside(options: EngineOptions, artifact: Path | None) -> Engine | None:
    if artifact is None:
        return None
    if str(artifact) == TEACHER:
        # Has the calls that a session makes.
        teacher: Any = OfflineTeacher(options.device, options.watermark)
        return teacher
    return open_engine(dataclasses.replace(options, artifact=artifact, loras=()))


def show_in_browser(port: int, browser: bool) -> None:
    """Serve the kept student to this machine, and open its page, until a signal comes.

    Args:
        port: port to listen at; 0 for any that is free.
        browser: whether to open the page; its address is printed in any case.

    Raises:
        OmniForcingError: if the kept student is damaged or the port is taken.
    """
    serve_streams(
        EngineOptions(),
        Limits(),
        "127.0.0.1",
        port,
        announce=_open_page if browser else None,
    )


def _open_page(address: str) -> None:
    # Some browsers keep the call until they are closed, and the server must run meanwhile.
    threading.Thread(target=_open_or_say, args=(address,), daemon=True).start()


def _open_or_say(address: str) -> None:
    # Where there is no screen, Python would start a browser of text in this very terminal.
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, screens))
    try:
        opened = screen and webbrowser.open(address)
    except (webbrowser.Error, OSError):
        opened = False
    if not opened:
        print(f"no browser could be opened here; open {address} in one", file=sys.stderr)
