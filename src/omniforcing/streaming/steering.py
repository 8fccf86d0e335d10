"""What a viewer asks of a running stream, handed to its generating thread at the next border between blocks."""

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
    """A wish that came to nothing: another prompt overtook it, or the stream ended before."""


@dataclass(frozen=True)
class Applied:
    """Where in the stream a prompt took effect: the block, and the seconds at which its picture begins."""

    block: int
    seconds: float


@dataclass(frozen=True)
class Wish(Generic[T]):
    """Something to do at the border before block ``at``, or at the next one."""

    at: int | None
    done: Future[T] = field(default_factory=Future)

    def due(self, index: int) -> bool:
        return self.at is None or self.at <= index


@dataclass(frozen=True)
class Switch(Wish[Applied]):
    """Another prompt, its features, and whether what the student remembers is written anew under it."""

    prompt: str = ""
    text: TextFeatures | None = None
    rewrite: bool = False


class Controls:
    """Wishes and the pause switch; one side asks from any thread, the other looks at every border."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._paused = self._over = False
        self._until = math.inf
        self._switches: list[Switch] = []
        self._saves: list[Wish[StreamState]] = []

    def ask(self, wish: Switch | Wish[StreamState]) -> None:
        """Add a wish; one that comes after the end fails at once."""
        wish.done.set_running_or_notify_cancel()  # whoever waits may give up, but not take the wish back
        with self._changed:
            if self._over:
                wish.done.set_exception(NotApplied("streaming.over", "the stream is over"))
            elif isinstance(wish, Switch):
                self._switches.append(wish)
            else:
                self._saves.append(wish)
            self._changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Stop before the next block, or go on."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    def allow(self, until: float) -> None:
        """Begin no block at or after so many seconds of the stream."""
        with self._changed:
            self._until = until
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        return self._paused

    def border(
        self, index: int, start: float, can_be_saved: bool
    ) -> tuple[Switch | None, list[Wish[StreamState]]]:
        """What is due before block ``index``, which begins at ``start`` seconds: the latest prompt and all saves.

        Waits while paused or not allowed to go on, but for saves.

        Raises:
            Closed: if the stream was closed.
        """

        def held() -> bool:
            return self._paused or start >= self._until

        with self._changed:
            self._changed.wait_for(
                lambda: not held() or self._over or (can_be_saved and bool(self._due_saves(index)))
            )
            if self._over:
                raise Closed
            saves = self._due_saves(index) if can_be_saved else []
            self._saves = [wish for wish in self._saves if wish not in saves]
            switches = (
                [] if held() or saves else [wish for wish in self._switches if wish.due(index)]
            )
            self._switches = [wish for wish in self._switches if wish not in switches]
        for overtaken in switches[:-1]:
            overtaken.done.set_exception(
                NotApplied("streaming.overtaken", "another prompt came before the next block")
            )
        return (switches[-1] if switches else None), saves

    def _due_saves(self, index: int) -> list[Wish[StreamState]]:
        return [wish for wish in self._saves if wish.due(index)]

    def end(self) -> None:
        """Take no more wishes and fail those that wait."""
        with self._changed:
            self._over = True
            waiting: list[Wish[Any]] = [*self._switches, *self._saves]
            self._switches, self._saves = [], []
            self._changed.notify_all()
        for wish in waiting:
            wish.done.set_exception(
                NotApplied("streaming.over", "the stream ended before this took effect")
            )
