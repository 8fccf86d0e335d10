"""Decoding in a process of its own, which a file may crash or hold up without harm to others.

Decoders are large programs that read what strangers wrote. One that crashes ends its process, one
that never returns is killed, and either costs the file that it happened on and no more.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from omniforcing.core.environment import die_with_parent
from omniforcing.core.errors import OmniForcingError
from omniforcing.media.conform import ClipCutter
from omniforcing.media.files import encode_mp4
from omniforcing.media.format import ClipFormat
from omniforcing.media.probe import MediaInfo, Rejected, reason_of

Result = TypeVar("Result")
# Seconds that a call may take: at least this, and so much for each second of media that it may have
# to go through.
PATIENCE = 120.0
PATIENCE_PER_SECOND = 4.0
SILENT = -80.0  # peak in dB below which a clip is silent
FAINT = -50.0  # root mean square in dB below which it is nearly silent


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
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()

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
    import torch

    die_with_parent(parent)
    torch.set_num_threads(1)
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


@lru_cache(maxsize=1)
def _cutter(path: Path, form: ClipFormat, language: str | None) -> ClipCutter:
    return ClipCutter(path, form, language)


def probe_clips(path: Path, form: ClipFormat, language: str | None) -> tuple[MediaInfo, int]:
    """Return the properties of a file and the number of clips that it holds.

    Raises:
        Rejected: as ``ClipCutter``.
    """
    cutter = _cutter(path, form, language)
    return cutter.info, cutter.cuts


@dataclass(frozen=True)
class CutClip:
    """A conformed and encoded clip.

    Attributes:
        start: time of its first frame in seconds on the clock of its file.
        content: the clip as ``encode_mp4`` encodes it.
        peak: largest sample in dB.
        level: root mean square of the samples in dB.
    """

    start: float
    content: bytes
    peak: float
    level: float

    @property
    def loudness(self) -> str:
        """``silent``, ``faint`` or ``heard``."""
        return "silent" if self.peak < SILENT else "faint" if self.level < FAINT else "heard"


def cut_clip(path: Path, form: ClipFormat, language: str | None, cut: int, crf: int) -> CutClip:
    """Cut, conform and encode a clip. Cuts of one file are best asked for in order.

    Raises:
        Rejected: as ``ClipCutter`` and its ``clip``.
    """
    cutter = _cutter(path, form, language)
    media = cutter.clip(cut)
    peak = float(np.abs(media.audio).max(initial=0.0))
    level = float(np.sqrt(np.square(media.audio, dtype=np.float64).mean()))
    return CutClip(cutter.start(cut), encode_mp4(media, crf), _decibels(peak), _decibels(level))


def _decibels(amplitude: float) -> float:
    return round(20 * float(np.log10(max(amplitude, 1e-6))), 1)
