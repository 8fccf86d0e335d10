"""What may be asked of a stream, and exactly what it will hold. No torch here: a bad request costs no loading."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS, BlockTable, samples_of

MAX_SEED = 2**63 - 1


class RequestError(OmniForcingError):
    """A prompt, a length or a seed that cannot be streamed; names what was given."""


@dataclass(frozen=True)
class Request:
    """A prompt, a length in seconds (whole or not; None: until it is closed) and a seed.

    Raises:
        RequestError: for an empty prompt, a length that is not finite or is below one frame, or a seed that is not a whole
            number from 0 to 2^63 - 1.
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
                f"a stream cannot last {self.seconds} seconds; ask for at least {1 / FPS:.3f}, one frame",
            )
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not 0 <= self.seed <= MAX_SEED
        ):
            raise RequestError(
                "streaming.bad-seed",
                f"the seed is {self.seed!r}; use a whole number from 0 to {MAX_SEED}",
            )

    @property
    def frames(self) -> int | None:
        """``1 + 24 K``, to the nearest frame; None without end."""
        return None if self.seconds is None else 1 + round(FPS * self.seconds)

    def limits(self, sample_rate: int) -> tuple[int, int] | None:
        """Frames, and samples at the rate of the sound, to the nearest one; None without end."""
        if self.seconds is None or self.frames is None:
            return None
        return self.frames, round(sample_rate * self.seconds)

    def block_count(self, table: BlockTable, sample_rate: int) -> int | None:
        """The fewest blocks that hold all frames and all samples; None without end."""
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
    """Refuse what cannot be shown.

    Raises:
        RequestError: if it is no text, or says nothing.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError(
            "streaming.no-prompt", f"the prompt is {prompt!r}; say in words what to show and hear"
        )
