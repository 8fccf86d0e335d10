"""The ASGI app: page, WebSockets, health, readiness, metrics. Runs under uvicorn or Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from omniforcing.serving.realtime import PATH, RealtimeWire, wants_sound
from omniforcing.serving.rollover import Rollover
from omniforcing.serving.service import BEARER, Refused, ServedModel, Service
from omniforcing.serving.session import Session
from omniforcing.serving.wire import OwnWire, Wire

# The page runs the scripts of this server only, and no other site may frame it. Caches ask each
# time, so that the files of two releases are never mixed.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src blob:; worker-src blob:; img-src blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def build_app(service: Service, rollover: Rollover | None = None) -> Starlette:
    """Build the app of a service.

    Args:
        service: what its sessions share.
        rollover: changes the service's model while the app runs.
    """
    answers, streams = _Answers(service), _Streams(service)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(rollover.follow(service)) if rollover else None
        yield
        if following:
            following.cancel()
        service.close()

    routes = [
        Route("/", answers.page),
        Route("/page/{name}", answers.page),
        Route("/health", answers.health),
        Route("/ready", answers.ready),
        Route("/metrics", answers.metrics),
    ]
    sockets = [WebSocketRoute("/stream", streams.own), WebSocketRoute(PATH, streams.realtime)]
    if service.beside is not None:
        sockets.append(WebSocketRoute("/beside", streams.beside))
    return Starlette(
        routes=[*routes, *sockets],
        exception_handlers={Refused: answers.refusal},
        lifespan=lifespan,
    )


class _Answers:
    """What a service answers over HTTP.

    Args:
        service: what its sessions share.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.pages = service, read_page()

    async def page(self, request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        if name not in self.pages:
            return PlainTextResponse("not found", 404)
        return Response(self.pages[name], headers=HEADERS, media_type=_media_type(name))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(self, request: Request) -> Response:
        service = self.service
        reason = service.not_ready()
        try:
            # Our page names its origin, for the browser hides from it why a WebSocket was refused.
            origin = request.query_params.get("origin")
            service.check_origin(origin, request.headers.get("host", ""))
        except Refused as refused:
            reason = str(refused)
        answer = {"ready": reason is None, "reason": reason, **service.about()}
        model = service.model
        answer |= {"artifact": model.mark.artifact, "version": model.version}
        answer |= {"behind": service.behind, "streams": service.streams}
        return JSONResponse(answer, 200 if reason is None else 503)

    async def metrics(self, request: Request) -> Response:
        self.service.authorise(request.headers)
        gauges = self.service.gauges
        gauges.ready.set(self.service.not_ready() is None)
        return Response(gauges.text(), media_type="text/plain; version=0.0.4")

    async def refusal(self, _: Request, refused: Exception) -> Response:
        assert isinstance(refused, Refused)
        return _refusal(self.service, refused)


class _Streams:
    """What a service streams over WebSockets.

    Args:
        service: what its sessions share.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    async def own(self, socket: WebSocket) -> None:
        await self._serve(socket, OwnWire.subprotocol, self._own_wire)

    async def beside(self, socket: WebSocket) -> None:
        await self._serve(socket, OwnWire.subprotocol, self._own_wire, self.service.beside)

    async def realtime(self, socket: WebSocket) -> None:
        sound = wants_sound(socket.query_params)
        await self._serve(
            socket, RealtimeWire.subprotocol, lambda: RealtimeWire(self.service, sound)
        )

    def _own_wire(self) -> Wire:
        return OwnWire(self.service.limits)

    async def _serve(
        self,
        socket: WebSocket,
        subprotocol: str | None,
        make_wire: Callable[[], Wire],
        model: ServedModel | None = None,
    ) -> None:
        service = self.service
        try:
            service.admit(socket.headers, subprotocol)
        except Refused as refused:
            await socket.send_denial_response(_refusal(service, refused))
            return
        with service:
            await socket.accept(subprotocol or _shown_token(socket))
            # Wire and session read the service's model with no wait between, in which it changes.
            await Session(socket, service, make_wire(), model).run()


def _refusal(service: Service, refused: Refused) -> Response:
    service.gauges.refused.labels(refused.reason).inc()
    return JSONResponse({"error": str(refused), "code": refused.code}, refused.status)


def _shown_token(socket: WebSocket) -> str | None:
    """Return the subprotocol that shows a token, which a browser must see accepted; or None."""
    offered: list[str] = socket.scope.get("subprotocols", [])
    return next((word for word in offered if word.startswith(BEARER)), None)


def read_page() -> dict[str, str]:
    """Read the files of the page by name: ``page.html``, its style and its scripts."""
    folder = files("omniforcing.serving").joinpath("page")
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}


def _media_type(name: str) -> str:
    return MEDIA_TYPES[name.rpartition(".")[2]]
