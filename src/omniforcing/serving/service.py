"""What all sessions of a server share: the engine, the limits, who may come in, and the way to a quiet end."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS
from omniforcing.serving.gauges import Gauges
from omniforcing.serving.protocol import SUBPROTOCOL, VERSION, Limits
from omniforcing.streaming.engine import Engine

BEARER = (
    "bearer."  # how a browser, which cannot set headers, offers its token: as a second subprotocol
)


class Refused(OmniForcingError):
    """A connection that is not taken.

    Args:
        code: as of every error.
        message: likewise.
        status: of the HTTP answer.
        reason: the label under which the gauges count it.
    """

    def __init__(self, code: str, message: str, status: int, reason: str) -> None:
        super().__init__(code, message)
        self.status, self.reason = status, reason


class Service:
    """Shared by all sessions; lives on one event loop.

    Args:
        engine: the loaded artifact.
        limits: what clients may ask for.
        origins: web origins (``http://host:port``) whose pages may connect; clients that are no browsers name none.
        token: what every client must show; None: nothing.

    Raises:
        OmniForcingError: for a token that cannot be sent.
    """

    def __init__(
        self, engine: Engine, limits: Limits, origins: Sequence[str], token: str | None = None
    ) -> None:
        if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{8,}", token):
            raise OmniForcingError(
                "serving.bad-token",
                "the token must be 8 or more letters, digits and . _ ~ -, which browsers can send",
            )
        self.engine, self.limits, self.gauges = engine, limits, Gauges()
        self._origins, self._token = {origin.rstrip("/").lower() for origin in origins}, token
        self._sessions = 0
        self.draining = False
        self.closing = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        # A session waits for a chunk, encodes one and steers at the same time.
        self.executor = ThreadPoolExecutor(3 * limits.sessions, "omniforcing-serve")

    # --- who may come in -------------------------------------------------------------------------------------------------

    def authorise(self, headers: Mapping[str, str]) -> None:
        """Check the bearer token, if there is one.

        Raises:
            Refused: if it is missing or another one.
        """
        if self._token is None:
            return
        offered = [word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")]
        tokens = [word.removeprefix(BEARER) for word in offered if word.startswith(BEARER)]
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            tokens.append(value.strip())
        if not any(hmac.compare_digest(token.encode(), self._token.encode()) for token in tokens):
            raise Refused(
                "serving.wrong-token",
                "this server wants a bearer token; send it in Authorization or as a subprotocol",
                401,
                "token",
            )

    def admit(self, headers: Mapping[str, str]) -> None:
        """Check everything that stands between a client and a session.

        Raises:
            Refused: for a foreign origin, a missing token, another protocol, a full server, or one that is about to stop.
        """
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in self._origins:
            raise Refused(
                "serving.foreign-origin",
                f"pages of {origin} may not connect; the server's --origin names those that may",
                403,
                "origin",
            )
        self.authorise(headers)
        if SUBPROTOCOL not in [
            word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")
        ]:
            raise Refused(
                "serving.wrong-protocol",
                f"this server speaks the subprotocol {SUBPROTOCOL}; offer it",
                400,
                "protocol",
            )
        if (reason := self.not_ready()) is not None:
            raise Refused("serving.busy", reason, 503, "busy")

    def not_ready(self) -> str | None:
        """Why no session would be taken now; None if one would."""
        if self.draining:
            return "the server is about to stop; try another one"
        if self._sessions >= self.limits.sessions:
            return f"all {self.limits.sessions} sessions are taken; try again later"
        return None

    def about(self) -> dict[str, Any]:
        """What a client should know before it asks for anything."""
        settings = self.engine.settings
        return {
            "protocol": VERSION,
            "token": self._token is not None,
            "limits": asdict(self.limits),
            "width": settings.width,
            "height": settings.height,
            "fps": FPS,
            "sample_rate": settings.sample_rate,
            "preset": settings.preset,
        }

    # --- sessions and their end ------------------------------------------------------------------------------------------

    def __enter__(self) -> Service:
        """A session begins."""
        self._sessions += 1
        self._empty.clear()
        self.gauges.sessions.set(self._sessions)
        return self

    def __exit__(self, *_: object) -> None:
        """A session is over."""
        self._sessions -= 1
        self.gauges.sessions.set(self._sessions)
        if self._sessions == 0:
            self._empty.set()

    async def drain(self, seconds: float) -> None:
        """Take no more sessions, let those that run go on for so long, then end them in an orderly way."""
        self.draining = True
        for end_them in (False, True):
            if end_them:
                self.closing.set()
            try:
                await asyncio.wait_for(self._empty.wait(), seconds)
            except TimeoutError:
                continue
            return

    def close(self) -> None:
        """Let the worker threads go; no session may be open."""
        self.executor.shutdown(wait=False, cancel_futures=True)
