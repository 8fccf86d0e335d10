"""What may be asked of a stream, and exactly what it will hold. No torch here: a bad request costs no loading."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omniforcing.errors import OmniForcingError
from omniforcing.layout import FPS, SAMPLE_RATE, BlockTable

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
        if self.seconds is not None and (not math.isfinite(self.seconds) or round(FPS * self.seconds) < 1):
            raise RequestError(f"a stream cannot last {self.seconds} seconds; ask for at least {1 / FPS:.3f}, one frame")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"the seed is {self.seed!r}; use a whole number from 0 to {MAX_SEED}")

    @property
    def frames(self) -> int | None:
        """``1 + 24 K``, to the nearest frame; None without end."""
        return None if self.seconds is None else 1 + round(FPS * self.seconds)

    @property
    def samples(self) -> int | None:
        """``16000 K``, to the nearest sample; None without end."""
        return None if self.seconds is None else round(SAMPLE_RATE * self.seconds)

    @property
    def limits(self) -> tuple[int, int] | None:
        """Both counts; None without end."""
        return None if self.frames is None or self.samples is None else (self.frames, self.samples)

    def block_count(self, table: BlockTable) -> int | None:
        """The fewest blocks that hold all frames and all samples; None without end."""
        if self.limits is None:
            return None
        frames, samples = self.limits
        return 1 + next(b.index for b in table if b.frames.stop >= frames and b.samples.stop >= samples)


def check_prompt(prompt: str) -> None:
    """Refuse what cannot be shown.

    Raises:
        RequestError: if it is no text, or says nothing.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError(f"the prompt is {prompt!r}; say in words what to show and hear")
