"""What may be asked of a stream, and exactly what it will hold. No torch here: a bad request costs no loading."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omniforcing.errors import OmniForcingError
from omniforcing.layout import FPS, SAMPLE_RATE, Block, BlockTable

MAX_SEED = 2**63 - 1


class RequestError(OmniForcingError):
    """A prompt, a length or a seed that cannot be streamed; names what was given."""


@dataclass(frozen=True)
class Request:
    """A prompt, a length in seconds (whole or not) and a seed.

    Raises:
        RequestError: for an empty prompt, a length that is not finite or is below one frame, or a seed that is not a whole
            number from 0 to 2^63 - 1.
    """

    prompt: str
    seconds: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise RequestError(f"the prompt is {self.prompt!r}; say in words what to show and hear")
        if not math.isfinite(self.seconds) or round(FPS * self.seconds) < 1:
            raise RequestError(f"a stream cannot last {self.seconds} seconds; ask for at least {1 / FPS:.3f}, one frame")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"the seed is {self.seed!r}; use a whole number from 0 to {MAX_SEED}")

    @property
    def frames(self) -> int:
        """``1 + 24 K``, to the nearest frame."""
        return 1 + round(FPS * self.seconds)

    @property
    def samples(self) -> int:
        """``16000 K``, to the nearest sample."""
        return round(SAMPLE_RATE * self.seconds)

    def blocks(self, table: BlockTable) -> tuple[Block, ...]:
        """The fewest blocks that hold all frames and all samples."""
        last = next(b.index for b in table if b.frames.stop >= self.frames and b.samples.stop >= self.samples)
        return table.blocks(last + 1)
