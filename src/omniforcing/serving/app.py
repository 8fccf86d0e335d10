"""The ASGI app: page, WebSockets, health, readiness, metrics. Runs under uvicorn or Ray Serve."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from omniforcing.serving.realtime import PATH, RealtimeWire, wants_sound
from omniforcing.serving.rollover import Rollover
from omniforcing.serving.service import BEARER, Refused, Service
from omniforcing.serving.session import Session
from omniforcing.serving.wire import OwnWire, Wire


def build_app(service: Service, rollover: Rollover | None = None) -> Starlette:
    """Build the app of a service.

    Args:
        service: what its sessions share.
        rollover: changes the service's model while the app runs.
    """
    page = files("omniforcing.serving").joinpath("page.html").read_text(encoding="utf-8")
    headers = _page_headers(page)

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    async def health(_: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(request: Request) -> Response:
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
        answer["behind"] = service.behind
        return JSONResponse(answer, 200 if reason is None else 503)

    async def metrics(request: Request) -> Response:
        service.authorise(request.headers)
        service.gauges.ready.set(service.not_ready() is None)
        return Response(service.gauges.text(), media_type="text/plain; version=0.0.4")

    async def stream(socket: WebSocket) -> None:
        await serve(socket, OwnWire.subprotocol, lambda: OwnWire(service.limits))

    async def realtime(socket: WebSocket) -> None:
        sound = wants_sound(socket.query_params)
        await serve(socket, RealtimeWire.subprotocol, lambda: RealtimeWire(service, sound))

    async def serve(
        socket: WebSocket, subprotocol: str | None, make_wire: Callable[[], Wire]
    ) -> None:
        try:
            service.admit(socket.headers, subprotocol)
        except Refused as refused:
            await socket.send_denial_response(_refusal(service, refused))
            return
        with service:
            await socket.accept(subprotocol or _shown_token(socket))
            # Wire and session read the service's model with no wait between, in which it changes.
            await Session(socket, service, make_wire()).run()

    async def refuse(_: Request, refused: Exception) -> Response:
        assert isinstance(refused, Refused)
        return _refusal(service, refused)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(rollover.follow(service)) if rollover else None
        yield
        if following:
            following.cancel()
        service.close()

    routes = [
        Route("/", show),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
    ]
    return Starlette(
        routes=[*routes, WebSocketRoute("/stream", stream), WebSocketRoute(PATH, realtime)],
        exception_handlers={Refused: refuse},
        lifespan=lifespan,
    )


def _refusal(service: Service, refused: Refused) -> Response:
    service.gauges.refused.labels(refused.reason).inc()
    return JSONResponse({"error": str(refused), "code": refused.code}, refused.status)


def _shown_token(socket: WebSocket) -> str | None:
    """Return the subprotocol that shows a token, which a browser must see accepted; or None."""
    offered: list[str] = socket.scope.get("subprotocols", [])
    return next((word for word in offered if word.startswith(BEARER)), None)


def _page_headers(page: str) -> dict[str, str]:
    """Headers that let the page run its own script only, and no other site frame it."""
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = (
        base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() if script else ""
    )
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; media-src blob:; worker-src blob:; img-src blob: data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
