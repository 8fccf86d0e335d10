"""A bounded queue between two threads that either side can end at any moment."""

from __future__ import annotations

import time
from collections import deque
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The channel has ended: it takes no items and has none to give."""


class Channel(Generic[T]):
    """Queue of at most ``size`` items; a full queue blocks its producers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._ended = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> float:
        """Add ``item`` when there is room; return the seconds waited.

        Raises:
            Closed: if the channel has ended.
        """
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._items) < self._size)
            if self._ended:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()
        return time.perf_counter() - began

    def get(self) -> T:
        """Wait for an item and return the oldest.

        Raises:
            Closed: if the channel has ended and is empty.
            BaseException: the error that it was ended with, once it is empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or bool(self._items))
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        raise Closed

    def finish(self, error: BaseException | None = None) -> None:
        """End for producers; waiting items can still be taken, and then ``error`` is raised."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """End at once for both sides and drop waiting items."""
        with self._changed:
            self._ended = True
            self._items.clear()
            self._changed.notify_all()
