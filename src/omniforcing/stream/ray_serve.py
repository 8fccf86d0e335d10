"""The server's ASGI app as a Ray Serve deployment: ``serve run omniforcing.stream.ray_serve:app artifact=FOLDER``.

Nothing else imports this module, for an inference machine needs no Ray. Arguments: ``artifact``, ``device`` (cpu),
``replicas`` (1), ``speed_ups`` (with commas), ``origin`` (of the pages that may connect; http://localhost:8000 and
http://127.0.0.1:8000 if left out). The limits are those of ``omniforcing serve``; the token comes from the same variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from starlette.applications import Starlette

from omniforcing.errors import OmniForcingError
from omniforcing.model.speed import with_speed_ups
from omniforcing.stream.app import build_app
from omniforcing.stream.artifact import Artifact
from omniforcing.stream.engine import Engine
from omniforcing.stream.protocol import Limits
from omniforcing.stream.serve import TOKEN_VARIABLE
from omniforcing.stream.service import Service

_LOCAL = ("http://localhost:8000", "http://127.0.0.1:8000")


def app(arguments: Mapping[str, str]) -> serve.Application:
    """What ``serve run`` runs.

    Raises:
        OmniForcingError: if the artifact is missing or altered, or a speed-up unknown.
    """
    if "artifact" not in arguments:
        raise OmniForcingError("name the artifact: serve run omniforcing.stream.ray_serve:app artifact=FOLDER")
    folder = Path(arguments["artifact"]).resolve()  # replicas run elsewhere
    Artifact.open(folder)
    origins = [arguments["origin"]] if "origin" in arguments else list(_LOCAL)
    device, token = arguments.get("device", "cpu"), os.environ.get(TOKEN_VARIABLE) or None
    speed = with_speed_ups(arguments["speed_ups"].split(",") if "speed_ups" in arguments else [])

    def build() -> Starlette:
        return build_app(Service(Engine(folder, device, speed), Limits(), origins, token))

    @serve.deployment(num_replicas=int(arguments.get("replicas", "1")), max_ongoing_requests=100)
    @serve.ingress(build)
    class Streaming:
        """The app, one per replica."""

    deployment: Any = Streaming
    return deployment.bind()
