"""``omniforcing serve``: serve the page and its WebSocket, by default to this machine only."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import errno
import os
import socket
from types import FrameType

import uvicorn

from omniforcing.core.environment import TOKEN_VARIABLE
from omniforcing.core.errors import OmniForcingError
from omniforcing.serving.app import build_app
from omniforcing.serving.protocol import Limits
from omniforcing.serving.service import Service
from omniforcing.streaming.command import add_engine_arguments, open_engine

# Largest message that is read at all. Above the largest image that is accepted, so that an image
# which is somewhat too large is refused with a sentence instead of a broken connection.
MESSAGE_BYTES = 12_000_000
_HELP = {
    "sessions": "connections at a time",
    "seconds": "longest stream",
    "prompt_chars": "longest prompt",
    "image_bytes": "largest image",
    "idle_seconds": "silence after which a client is let go",
    "lead_seconds": "how far a stream may be ahead of its player",
    "mistakes": "messages that are not understood before a client is let go",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``omniforcing serve``."""
    add_engine_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8765,
        help="port to listen at (default: 8765; 0: any that is free)",
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        help="also allow pages of this origin, as https://host:port",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=10.0,
        help="what streams get after SIGTERM (default: 10)",
    )
    limits = parser.add_argument_group(
        "limits", f"With {TOKEN_VARIABLE} in the environment, clients must show that token."
    )
    for field in dataclasses.fields(Limits):
        name = f"--max-{field.name.replace('_', '-')}"
        about = f"{_HELP[field.name]} (default: {field.default})"
        limits.add_argument(
            name, type=type(field.default), default=field.default, dest=field.name, help=about
        )


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
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise OmniForcingError(
                "serving.port-in-use",
                f"port {port} of {host} is in use; choose another one with --port",
            ) from error
        raise OmniForcingError(
            "serving.cannot-listen",
            f"cannot listen at {host}, port {port}: {error}; choose another --host or --port",
        ) from error


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes; return 0.

    Raises:
        OmniForcingError: if an argument, the artifact or the address cannot be used.
    """
    limits = Limits(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)}
    )
    listening = listen(args.host, args.port)
    with listening:
        host, port = listening.getsockname()[:2]
        names = ("localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host)
        origins = [*args.origin, *(f"http://{name}:{port}" for name in names)]
        service = Service(
            open_engine(args), limits, origins, os.environ.get(TOKEN_VARIABLE) or None
        )
        config = uvicorn.Config(
            build_app(service),
            log_level="warning",
            ws_max_size=MESSAGE_BYTES,
            ws_per_message_deflate=False,
            lifespan="on",
        )
        print(f"listening at http://{names[-1]}:{port}", flush=True)
        _Server(config, service, args.drain_seconds).run(sockets=[listening])
    return 0
