"""What a server's sessions share: engines, limits, admission, draining."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from omniforcing.core.errors import QUOTED_CHARS, OmniForcingError
from omniforcing.core.layout import FPS
from omniforcing.media.marking import Mark
from omniforcing.serving.gauges import Gauges
from omniforcing.serving.protocol.messages import VERSION, Limits
from omniforcing.streaming.engine import Engine

# Browsers cannot set headers of a WebSocket: they offer the token as a second subprotocol.
BEARER = "bearer."


class Refused(OmniForcingError):
    """A refused connection.

    Args:
        code: code of the error.
        message: the sentence.
        status: HTTP status of the answer.
        reason: label of the counter of refused connections.
    """

    def __init__(self, code: str, message: str, status: int, reason: str) -> None:
        super().__init__(code, message)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class ServedModel:
    """A model that sessions stream with; one keeps to its own when the server changes to another.

    Attributes:
        engine: the loaded artifact.
        mark: what its clips say of themselves. Kept, for it hashes files.
        version: ``models:/NAME/VERSION`` if an alias named it.
    """

    engine: Engine
    mark: Mark
    version: str | None = None

    @classmethod
    def of(cls, engine: Engine, version: str | None = None) -> ServedModel:
        """Build it of a loaded artifact."""
        return cls(engine, engine.mark, version)


class Service:
    """Model, limits and gauges that all sessions share; belongs to one event loop.

    Args:
        model: what sessions stream with.
        limits: limits of what clients may ask for.
        origins: web origins (``http://host:port``) whose pages may connect. Clients other than
            browsers send no origin and are not checked.
        token: bearer token that every client must send; None for none.
        any_address: whether the server listens at all addresses of its machine. Our own page may
            then connect by any of them.
        beside: a second artifact, streamed next to the first; None for none.

    Attributes:
        model: what new sessions stream with.
        behind: why that is not the model that the alias names; None if it is, or none is followed.

    Raises:
        OmniForcingError: if the token has characters that browsers cannot send.
    """

    def __init__(
        self,
        model: ServedModel | Engine,
        limits: Limits,
        origins: Sequence[str],
        token: str | None = None,
        *,
        any_address: bool = False,
        beside: Engine | None = None,
    ) -> None:
        if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{8,}", token):
            raise OmniForcingError(
                "serving.bad-token",
                "the token must be 8 or more letters, digits and . _ ~ -, which browsers can send",
            )
        self.limits, self.gauges = limits, Gauges()
        self.behind: str | None = None
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.gauges.models.set_function(lambda engines=self._engines: len(engines))
        self.change_model(model if isinstance(model, ServedModel) else ServedModel.of(model))
        self.beside = None if beside is None else ServedModel.of(beside)
        self._origins, self._token = {origin.rstrip("/").lower() for origin in origins}, token
        self._any_address = any_address
        self._sessions = 0
        self.draining = False
        self.closing = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        # A session waits for a chunk, encodes one and steers at the same time.
        self.executor = ThreadPoolExecutor(3 * limits.sessions, "omniforcing-serve")

    # --- admission ---

    def authorise(self, headers: Mapping[str, str]) -> None:
        """Check the client's bearer token, if the server has one.

        Raises:
            Refused: if the token is missing or wrong.
        """
        if self._token is None:
            return
        offered = [word for word in _offered(headers) if word.startswith(BEARER)]
        tokens = [word.removeprefix(BEARER) for word in offered]
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

    def check_origin(self, origin: str | None, host: str) -> None:
        """Check whether pages of an origin may connect.

        Args:
            origin: origin of the page; None for a client that is no browser.
            host: the server's name and port in the request's ``Host``.

        Raises:
            Refused: if they may not.
        """
        if origin is None or origin.lower() in self._origins:
            return
        # Only an address proves that the page came from here: a foreign page can have a name of
        # its own point to this machine (DNS rebinding), and then both headers hold that name.
        if self._any_address and _is_address(host) and origin.lower() == f"http://{host}".lower():
            return
        shown = origin[:QUOTED_CHARS]
        raise Refused(
            "serving.foreign-origin",
            f"pages of {shown} may not connect; start the server with --origin {shown} if they "
            "shall",
            403,
            "origin",
        )

    def admit(self, headers: Mapping[str, str], subprotocol: str | None) -> None:
        """Check whether a client may have a session.

        Args:
            headers: of its request.
            subprotocol: what it must offer to speak; None for nothing.

        Raises:
            Refused: if its origin is not allowed, its token or subprotocol is wrong, the server is
                full, or it is about to stop.
        """
        self.check_origin(headers.get("origin"), headers.get("host", ""))
        self.authorise(headers)
        if subprotocol is not None and subprotocol not in _offered(headers):
            raise Refused(
                "serving.wrong-protocol",
                f"this server speaks the subprotocol {subprotocol}; offer it",
                400,
                "protocol",
            )
        if (reason := self.not_ready()) is not None:
            raise Refused("serving.busy", reason, 503, "busy")

    def not_ready(self) -> str | None:
        """Return why the server would refuse a session now; None if it would not."""
        if self.draining:
            return "the server is about to stop; try another one"
        if self._sessions >= self.limits.sessions:
            return f"all {self.limits.sessions} sessions are taken; try again later"
        return None

    @property
    def streams(self) -> list[dict[str, Any]]:
        """What of its one or two artifacts a page shows, each with the path of its WebSocket."""
        models = {"stream": self.model, "beside": self.beside}
        return [_described(path, model) for path, model in models.items() if model is not None]

    def about(self, model: ServedModel | None = None) -> dict[str, Any]:
        """Facts that a client is told first: protocol version, limits, size and rates.

        Args:
            model: what it is served with; by default what new sessions stream with.
        """
        settings = (model or self.model).engine.settings
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

    # --- the model ---

    def change_model(self, model: ServedModel) -> None:
        """Let new sessions stream with another model; those that run keep theirs.

        The model before is freed when its last session has ended.
        """
        self.model = model
        self._engines.add(model.engine)
        name = model.version or model.mark.model
        self.gauges.model.info({"name": name, "artifact": model.mark.artifact})

    # --- sessions and their end ---

    def __enter__(self) -> Service:
        """Count a session that begins."""
        self._sessions += 1
        self._empty.clear()
        self.gauges.sessions.set(self._sessions)
        return self

    def __exit__(self, *_: object) -> None:
        """Count a session that ends."""
        self._sessions -= 1
        self.gauges.sessions.set(self._sessions)
        if self._sessions == 0:
            self._empty.set()

    async def drain(self, seconds: float) -> None:
        """Take no more sessions and wait for the running ones.

        Args:
            seconds: time after which running sessions are told to end; they get as long again.
        """
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
        """Release the worker threads; no session may be open."""
        self.executor.shutdown(wait=False, cancel_futures=True)


async def run_until_first_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until the first ends; cancel the others and raise its exception."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        error = next(filter(None, (task.exception() for task in done)), None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    try:
        if error is not None:
            raise error
    finally:
        # The exception's traceback refers to this frame. A reference from the frame back to it
        # would be a cycle, and the stream (decoder, caches, encoders) would stay in memory until
        # a full garbage collection.
        del tasks, done, error


def _described(path: str, model: ServedModel) -> dict[str, Any]:
    """Describe an artifact in the words that tell two of them apart."""
    settings = model.engine.settings
    return {
        "path": path,
        "preset": settings.preset,
        "artifact": model.mark.artifact[:12],
        "method": settings.method,
        "width": settings.width,
        "height": settings.height,
        "sample_rate": settings.sample_rate,
    }


def _offered(headers: Mapping[str, str]) -> list[str]:
    """Return the subprotocols that a client offers."""
    return [word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")]


def _is_address(host: str) -> bool:
    """Return whether a ``Host`` header names an IP address."""
    try:
        ipaddress.ip_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
    return True
