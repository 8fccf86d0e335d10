"""Requests to a running stream, handed to its generating thread at the borders between blocks."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Generic, TypeVar

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import TextFeatures
from omniforcing.streaming.channel import Closed
from omniforcing.streaming.state import StreamState

T = TypeVar("T")


class NotApplied(OmniForcingError):
    """A request was dropped: a later prompt replaced it, or the stream ended before it was due."""


@dataclass(frozen=True)
class Applied:
    """Where a prompt took effect.

    Attributes:
        block: index of the first block that follows the prompt.
        seconds: time in the stream at which the picture of that block begins.
    """

    block: int
    seconds: float


@dataclass(frozen=True)
class Pending(Generic[T]):
    """A request that waits for its border.

    Attributes:
        at: index of the block before which it is due; None for the next border.
        done: its result.
    """

    at: int | None
    done: Future[T] = field(default_factory=Future)

    def due(self, index: int) -> bool:
        """Whether the border before block ``index`` is the one, or behind it."""
        return self.at is None or self.at <= index


@dataclass(frozen=True, kw_only=True)
class PromptChange(Pending[Applied]):
    """A request to follow another prompt.

    Attributes:
        prompt: the prompt.
        text: its features.
        rewrite: whether to rewrite the student's memory under it.
    """

    prompt: str
    text: TextFeatures
    rewrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ScaleChange(Pending[Applied]):
    """A request for other scales of the adapters over the student.

    Attributes:
        scales: a scale for each adapter.
    """

    scales: tuple[float, ...]


class Controls:
    """Pending requests and the pause; any thread asks, the generating thread looks at borders."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._paused = self._over = False
        self._until = math.inf
        self._changes: list[PromptChange] = []
        self._scales: list[ScaleChange] = []
        self._snapshots: list[Pending[StreamState]] = []

    def ask(self, request: PromptChange | ScaleChange | Pending[StreamState]) -> None:
        """Add a request; after the end of the stream it fails at once."""
        # A caller may stop waiting for the result, but cannot cancel the request.
        request.done.set_running_or_notify_cancel()
        with self._changed:
            if self._over:
                request.done.set_exception(NotApplied("streaming.over", "the stream is over"))
            elif isinstance(request, PromptChange):
                self._changes.append(request)
            elif isinstance(request, ScaleChange):
                self._scales.append(request)
            else:
                self._snapshots.append(request)
            self._changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Pause before the next block, or end the pause."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    def allow(self, until: float) -> None:
        """Let no block begin at or after ``until`` seconds of the stream."""
        with self._changed:
            self._until = until
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether the stream is paused."""
        return self._paused

    def border(
        self, index: int, start: float, can_be_saved: bool
    ) -> tuple[PromptChange | None, list[Pending[StreamState]]]:
        """Return the requests that are due before block ``index``.

        Waits while the stream is paused or not allowed to go on. Snapshots end the wait: they need
        no further block.

        Args:
            index: index of the next block.
            start: time in the stream at which it begins, seconds.
            can_be_saved: whether the generation has a state to save at this border.

        Returns:
            The latest change of prompt, or None, and all snapshots. Changes that it replaces fail.

        Raises:
            Closed: if the stream was closed.
        """

        def held() -> bool:
            return self._paused or start >= self._until

        def due_snapshots() -> list[Pending[StreamState]]:
            return [s for s in self._snapshots if s.due(index)] if can_be_saved else []

        with self._changed:
            self._changed.wait_for(lambda: not held() or self._over or bool(due_snapshots()))
            if self._over:
                raise Closed
            snapshots = due_snapshots()
            self._snapshots = [s for s in self._snapshots if s not in snapshots]
            changes = []
            # A prompt is only taken when its block follows at once, so that one which comes
            # during the pause can still replace it.
            if not held() and not snapshots:
                changes = [change for change in self._changes if change.due(index)]
            self._changes = [change for change in self._changes if change not in changes]
        for replaced in changes[:-1]:
            replaced.done.set_exception(
                NotApplied("streaming.overtaken", "another prompt came before the next block")
            )
        return (changes[-1] if changes else None), snapshots

    def scale_changes(self, index: int) -> list[ScaleChange]:
        """Take the changes of scale that are due before block ``index``, the earliest first."""
        with self._changed:
            due = [change for change in self._scales if change.due(index)]
            self._scales = [change for change in self._scales if change not in due]
        return due

    def end(self) -> None:
        """Take no more requests and fail those that wait."""
        with self._changed:
            self._over = True
            waiting: list[Pending[Any]] = [*self._changes, *self._scales, *self._snapshots]
            self._changes, self._scales, self._snapshots = [], [], []
            self._changed.notify_all()
        for request in waiting:
            request.done.set_exception(
                NotApplied("streaming.over", "the stream ended before this took effect")
            )
