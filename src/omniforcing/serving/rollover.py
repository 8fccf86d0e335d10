"""Roll-over of a running server to the model that an alias of MLflow's registry names now.

New sessions get the new model, those that run keep the one they began with. A model that cannot be
looked up or opened leaves the server with the one it has, and is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omniforcing.core.console import explain
from omniforcing.core.errors import OmniForcingError, quoted
from omniforcing.serving.service import ServedModel, Service
from omniforcing.streaming.engine import Engine
from omniforcing.tracking.registry import Registry, Version, is_alias, store_of
from omniforcing.tracking.store import bound_always

T = TypeVar("T")
logger = logging.getLogger("omniforcing.serve")
_LONGEST_WAIT = 3600.0  # seconds between two tries of a model that cannot be opened


@dataclass(frozen=True)
class Alias:
    """``models:/NAME@ALIAS`` in a store of MLflow.

    Attributes:
        name: the alias.
        store: address of the store.
    """

    name: str
    store: str

    @classmethod
    def of(cls, artifact: Path | str | None, seconds: float) -> Alias:
        """Read the alias that is to be followed from what names an artifact.

        Args:
            artifact: what ``Artifact.open`` takes; None for the student that the package keeps.
            seconds: between two looks at the alias.

        Raises:
            OmniForcingError: if it is no alias, there is no store, or the seconds are none.
        """
        name = "" if artifact is None else str(artifact)
        if not is_alias(name):
            told = quoted(name) if name else "the student that the package keeps"
            raise OmniForcingError(
                "serving.nothing-to-follow",
                f"{told} is no alias that moves; name models:/NAME@ALIAS as the artifact, or do "
                "not follow it",
            )
        if not 0 < seconds < math.inf:
            raise OmniForcingError(
                "option.out-of-range",
                f"an alias cannot be looked at every {seconds:g} seconds; give a number above 0, "
                "such as 30",
            )
        return cls(name, store_of(name))

    def version(self) -> Version:
        """Return the version that the alias names now.

        Raises:
            OmniForcingError: if there is none, or the store does not answer.
        """
        return Registry.at(self.store).find(self.name)

    def folder(self, version: Version) -> Path:
        """Return the artifact of a version; one of another machine is copied here once.

        Raises:
            OmniForcingError: if it holds none, or the store does not answer.
        """
        return Registry.at(self.store).artifact(version)


class Rollover:
    """Changes a service to the model that an alias names, whenever that is another one.

    Args:
        alias: the alias.
        seconds: between two looks at it.
        load: opens the artifact in a folder.
    """

    def __init__(self, alias: Alias, seconds: float, load: Callable[[Path], Engine]) -> None:
        self._alias, self._seconds, self._load = alias, seconds, load
        self._told = ""  # the last sentence in the log, which is not repeated at every look
        self._failed: str | None = None  # version that could not be opened
        self._tries, self._next_try = 0, 0.0

    def first(self, otherwise: tuple[str, Path] | None = None) -> ServedModel:
        """Open the model that the alias names now.

        Args:
            otherwise: version and folder of the model to take if that fails.

        Raises:
            OmniForcingError: if no model can be opened.
        """
        try:
            return self._open(self._alias.version())
        except Exception as error:
            if otherwise is None:
                raise
            version, folder = otherwise
            self._log(f"beginning with {version}", error)
            return ServedModel.of(self._load(folder), version)

    async def follow(self, service: Service) -> None:
        """Look at the alias until cancelled, or the service takes no more sessions."""
        bound_always()
        # It would repeat at every look what our log says once, while a store is down.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        while not service.draining:
            await asyncio.sleep(self._seconds)
            await self.look(service)

    async def look(self, service: Service) -> None:
        """Look at the alias, and change the service to its model if that is another one."""
        before, wanted = service.model.version, self._alias.name
        try:
            version = await _in_thread(self._alias.version)
            if str(version) != before:
                if str(version) == self._failed and time.monotonic() < self._next_try:
                    return
                wanted = str(version)
                service.change_model(await _in_thread(self._open, version))
        except Exception as error:
            told = self._log(f"still streaming with {before}", error)
            service.behind = f"{wanted} cannot be taken ({told.code}); the server's log says why"
            service.gauges.behind.set(1)
            if wanted != self._alias.name:
                self._put_off(wanted)
            return
        self._failed, self._told, service.behind = None, "", None
        service.gauges.behind.set(0)
        if wanted != self._alias.name:
            service.gauges.rollovers.inc()
            done = f"new streams are made by {wanted}; those of {before} go on"
            print(done, file=sys.stderr, flush=True)

    def _open(self, version: Version) -> ServedModel:
        return ServedModel.of(self._load(self._alias.folder(version)), str(version))

    def _put_off(self, version: str) -> None:
        """Try a version again later and later, for to verify a large one reads for minutes."""
        self._tries = self._tries + 1 if version == self._failed else 1
        self._failed = version
        wait = min(self._seconds * 2**self._tries, _LONGEST_WAIT)
        self._next_try = time.monotonic() + wait

    def _log(self, consequence: str, error: Exception) -> OmniForcingError:
        """Say in the log what stays and why; return the error with a code."""
        told = explain(error)
        if told is None:
            logger.error("%s", consequence, exc_info=error)
            return OmniForcingError("serving.fault", str(error))
        if told.message != self._told:
            logger.warning("%s: %s", consequence, told)
        self._told = told.message
        return told


def _in_thread(function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """Run a function in a thread that nobody waits for when the process ends.

    An executor's threads would be waited for, minutes for a large model.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="omniforcing-rollover", daemon=True).start()
    return asyncio.wrap_future(future)
