"""Decoding in a process of its own, which a file may crash or hold up without harm to others.

Decoders are large programs that read what strangers wrote. One that crashes ends its process, one
that never returns is killed, and either costs the file that it happened on and no more.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from omniforcing.core.environment import die_with_parent
from omniforcing.core.errors import OmniForcingError
from omniforcing.media.reading.tracks import Rejected, reason_of

Result = TypeVar("Result")
# Seconds that a call may take: at least this, and so much for each second of media that it may have
# to go through.
PATIENCE = 120.0
PATIENCE_PER_SECOND = 4.0


class Isolated:
    """Calls functions in one other process, started when needed and again after it was lost."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Connection | None = None

    def __call__(
        self, function: Callable[..., Result], *arguments: Any, media_seconds: float = 0.0
    ) -> Result:
        """Call a function that can be pickled and return its result.

        Args:
            function: what to call.
            arguments: its arguments.
            media_seconds: length of the media that it may go through, for the time limit.

        Raises:
            Rejected: if it raises that or fails in a library, its process dies, or it takes too
                long.
            OmniForcingError: if it raises that.
        """
        if self._connection is None:
            self._start()
        assert self._connection is not None
        limit = PATIENCE + PATIENCE_PER_SECOND * media_seconds
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(limit):
                self.close()
                raise Rejected("media.decoder-hangs", f"no answer in {limit:.0f} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._exit_code()
            self.close()
            raise Rejected(
                "media.decoder-crashed", f"its process ended with code {code}"
            ) from error
        if isinstance(answer, OmniForcingError):
            raise answer
        result: Result = answer
        return result

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        # Only now: what did not start cannot be ended.
        self._connection, self._process = mine, process

    def _exit_code(self) -> int | None:
        self._process.join(5)
        code: int | None = self._process.exitcode
        return code

    def close(self) -> None:
        """End the process, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = self._connection = None

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Isolated], tuple[()]]:
        return Isolated, ()  # a copy elsewhere starts a process there


def _serve(connection: Connection, parent: int) -> None:
    """Answer calls until the other end is closed."""
    die_with_parent(parent)
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which is imported for the calls that need it
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_answer(function, arguments))


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return a function's result, or the error to raise at the other end."""
    try:
        return function(*arguments)
    except OmniForcingError as error:
        return error
    except MemoryError:
        return Rejected("media.decoder-failed", "it needs more memory than there is")
    except Exception as error:
        return Rejected("media.decoder-failed", f"{type(error).__name__}: {reason_of(error)}")
