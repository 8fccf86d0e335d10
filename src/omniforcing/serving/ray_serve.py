"""The server's ASGI app as a Ray Serve deployment.

``serve run omniforcing.serving.ray_serve:app artifact=FOLDER`` runs it. Arguments:

- ``artifact``: folder of the artifact, ``models:/NAME@ALIAS`` in MLflow, or ``ORG/NAME`` on the
  Hub; required.
- ``device``: where to compute (default: cpu).
- ``replicas``: number of replicas (default: 1).
- ``speed_ups``: names, separated by commas.
- ``watermark``: program of a watermark for the sound, ``FILE:SHA256`` (default: none).
- ``drain``: seconds that streams get when their replica is stopped (default: 10).
- ``follow``: seconds between two looks at the alias that names the artifact; each replica makes
  new streams with the version that it names then (default: all keep the first).
- ``origin``: origin of pages that may connect (default: port 8000 of this machine).

An alias is followed within each replica, and not by another deployment: for that, Ray Serve
stops old replicas before it starts new ones, and their streams would be cut off.

Limits are those of ``omniforcing serve``; the token comes from the same variable. No other module
imports this one, so that an inference machine needs no Ray.

A replica that is stopped (its application is deleted, replaced or scaled down) ends its streams
as ``omniforcing serve`` does after SIGTERM. Ray Serve itself would wait without telling them, then
kill the replica. Shutting down all of Serve (Ctrl-C of ``serve run``, ``serve shutdown``) breaks
connections at once, because Serve kills its proxies first.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.schema import ServeInstanceDetails
from starlette.applications import Starlette

from omniforcing.core.environment import TOKEN_VARIABLE
from omniforcing.core.errors import OmniForcingError
from omniforcing.model.options import with_speed_ups
from omniforcing.serving.app import build_app
from omniforcing.serving.protocol.messages import Limits
from omniforcing.serving.rollover import Alias, Rollover
from omniforcing.serving.service import Service
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.watermark.watermark import absolute

_LOCAL = ("http://localhost:8000", "http://127.0.0.1:8000")
_POLL = 0.5  # seconds between two checks whether this replica is being stopped
_END = 30.0  # seconds for last messages, and for a busy controller to get round to this replica
logger = logging.getLogger("ray.serve")


def app(arguments: Mapping[str, str]) -> serve.Application:
    """Build the application that ``serve run`` runs.

    Raises:
        OmniForcingError: if the artifact is missing or altered, a speed-up is unknown, ``drain``
            or ``follow`` is not a number, or what is to be followed is no alias.
    """
    if "artifact" not in arguments:
        raise OmniForcingError(
            "option.missing",
            "name the artifact: serve run omniforcing.serving.ray_serve:app artifact=FOLDER",
        )
    artifact = arguments["artifact"]
    follow = _seconds("follow", arguments["follow"]) if "follow" in arguments else None
    alias = None if follow is None else Alias.of(artifact, follow)
    version = str(alias.version()) if alias else None
    folder = Artifact.open(version or artifact).folder.resolve()  # replicas run elsewhere
    origins = [arguments["origin"]] if "origin" in arguments else list(_LOCAL)
    device, token = arguments.get("device", "cpu"), os.environ.get(TOKEN_VARIABLE) or None
    speed = with_speed_ups(arguments["speed_ups"].split(",") if "speed_ups" in arguments else [])
    watermark = absolute(arguments["watermark"]) if "watermark" in arguments else None
    drain = _seconds("drain", arguments.get("drain", "10"))

    def load(folder: Path) -> Engine:
        return Engine(folder, device, speed, watermark=watermark)

    def build() -> Starlette:
        if alias and follow and version:
            rollover = Rollover(alias, follow, load)
            # A replica may start long after its deployment, or while the store does not answer.
            service = Service(rollover.first((version, folder)), Limits(), origins, token)
        else:
            rollover, service = None, Service(load(folder), Limits(), origins, token)
        app = build_app(service, rollover)
        app.router.lifespan_context = _drained(app.router.lifespan_context, service, drain)
        return app

    @serve.deployment(
        num_replicas=int(arguments.get("replicas", "1")),
        max_ongoing_requests=100,
        graceful_shutdown_wait_loop_s=_POLL,
        graceful_shutdown_timeout_s=2 * drain
        + _END,  # streams may end by themselves, then are ended
    )
    @serve.ingress(build)
    class Streaming:
        """The app, one per replica."""

    deployment: Any = Streaming
    return deployment.bind()


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OmniForcingError(
            "option.malformed",
            f"{name}={text} is not a number of seconds; give one, such as {name}=30",
        ) from error


def _drained(inner: Any, service: Service, seconds: float) -> Any:
    """Build a lifespan of the app that drains the service as soon as its replica is stopped.

    Ray Serve tells a replica's code of its end only when no request is left, and an endless stream
    is a request that never ends. Only the details that the controller publishes for its dashboard
    say so before.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with inner(app):
            watching = asyncio.create_task(_drain_when_stopped(service, seconds))
            try:
                yield
            finally:
                watching.cancel()

    return lifespan


async def _drain_when_stopped(service: Service, seconds: float) -> None:
    while not await _stopping():
        await asyncio.sleep(_POLL)
    logger.info("this replica is being stopped; its streams have %g seconds", seconds)
    await service.drain(seconds)


async def _stopping() -> bool:
    """Return whether the controller has begun to stop this replica."""
    own = serve.get_replica_context()
    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        details = ServeInstanceDetails(**await controller.get_serve_instance_details.remote())
    except (
        ray.exceptions.RayError,
        ValueError,
    ) as error:  # it is restarted when it dies, and replicas live on
        logger.warning("the controller does not say whether this replica is stopped: %s", error)
        return False
    application = details.applications.get(own.app_name)
    if application is None:
        return False
    deployment = application.deployments.get(own.deployment)
    states = {
        replica.replica_id: replica.state for replica in (deployment.replicas if deployment else [])
    }
    return application.status == "DELETING" or states.get(own.replica_id.unique_id) == "STOPPING"
