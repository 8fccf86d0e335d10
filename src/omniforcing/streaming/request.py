"""Requests for streams: checks, and the exact number of frames, samples and blocks.

Imports no torch, so that a bad request is refused before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from omniforcing.core.errors import OmniForcingError, quoted
from omniforcing.core.layout import FPS, BlockTable, samples_of

MAX_SEED = 2**63 - 1
IMAGE_BYTES = 10_000_000  # the largest file of a first frame


class RequestError(OmniForcingError):
    """A prompt, length or seed that cannot be streamed."""


@dataclass(frozen=True)
class Request:
    """A request for a stream.

    Attributes:
        prompt: what to show and hear.
        seconds: length, whole or not; None for a stream that goes on until it is closed.
        seed: seed of all its noise.

    Raises:
        RequestError: if the prompt is empty, the length is not finite or below one frame, or the
            seed is not an integer from 0 to 2^63 - 1.
    """

    prompt: str
    seconds: float | None
    seed: int = 0

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if self.seconds is not None and (
            not math.isfinite(self.seconds) or round(FPS * self.seconds) < 1
        ):
            raise RequestError(
                "streaming.no-time",
                f"a stream cannot last {quoted(self.seconds)} seconds; "
                f"ask for at least {1 / FPS:.3f}, one frame",
            )
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not 0 <= self.seed <= MAX_SEED
        ):
            raise RequestError(
                "streaming.bad-seed",
                f"the seed is {quoted(self.seed)}; use a whole number from 0 to {MAX_SEED}",
            )

    @property
    def frames(self) -> int | None:
        """Number of frames, ``1 + 24 seconds`` rounded; None for no end."""
        return None if self.seconds is None else 1 + round(FPS * self.seconds)

    def limits(self, sample_rate: int) -> tuple[int, int] | None:
        """Numbers of frames and of samples at ``sample_rate`` Hz, rounded; None for no end."""
        if self.seconds is None or self.frames is None:
            return None
        return self.frames, round(sample_rate * self.seconds)

    def block_count(self, table: BlockTable, sample_rate: int) -> int | None:
        """Smallest number of blocks that hold all frames and samples; None for no end."""
        limits = self.limits(sample_rate)
        if limits is None:
            return None
        frames, samples = limits
        return 1 + next(
            b.index
            for b in table
            if b.frames.stop >= frames and samples_of(b.mel, sample_rate).stop >= samples
        )


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that is empty, or that no tokenizer can read.

    Raises:
        RequestError: if it is not text, only white space, or no valid Unicode.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError(
            "streaming.no-prompt",
            f"the prompt is {quoted(prompt)}; say in words what to show and hear",
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            "streaming.bad-prompt",
            f"the prompt is no valid text at character {error.start + 1} "
            f"({quoted(prompt[error.start])}, half of a character); write that one anew",
        ) from error


def check_moment(seconds: float, length: float | None = None) -> None:
    """Refuse a second of a stream at which nothing can change.

    Args:
        seconds: time in the stream.
        length: length of the stream in seconds; None for no end.

    Raises:
        RequestError: if the time is negative, not finite, or not before the stream's end.
    """
    if not math.isfinite(seconds) or seconds < 0:
        raise RequestError(
            "streaming.no-moment",
            f"a prompt cannot change at second {seconds}; name one from 0 on",
        )
    if length is not None and seconds >= length:
        raise RequestError(
            "streaming.no-moment",
            f"a prompt cannot change at second {seconds:g} of a stream that ends at second "
            f"{length:g}; name an earlier one, or make the stream longer",
        )


def check_scales(scales: Sequence[float], count: int) -> None:
    """Refuse scales that are not one finite number for each adapter over the student.

    Args:
        scales: the scales.
        count: number of adapters.

    Raises:
        RequestError: naming what was given.
    """
    if len(scales) != count or not all(map(math.isfinite, scales)):
        raise RequestError(
            "streaming.bad-scales",
            f"the scales are {list(scales)}, and {count} adapters need one finite number each; "
            "0 is the student without an adapter, 1 the adapter as it was trained",
        )
