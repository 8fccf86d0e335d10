"""The figures of a stream that are always reported together (design section 9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.layout import FPS


@dataclass(frozen=True)
class BlockTiming:
    """One block on the clock.

    Attributes:
        frames: it adds.
        generate: seconds spent generating it, while the block before was decoded.
        decode: seconds spent decoding it, while the next one was generated.
        elapsed: seconds since the request until it was decoded.
        waited: seconds that the stream waited, before it, for its consumer: for room, or for leave to go on.
    """

    frames: int
    generate: float
    decode: float
    elapsed: float
    waited: float = 0.0


def block_seconds(timings: list[BlockTiming]) -> NDArray[np.float64]:
    """What each block took ``[N]``: the time since the one before, less that spent waiting for the consumer.

    Generation runs ahead while decoding waits, so no block counts for less than either of its halves.
    """
    between = np.diff([timing.elapsed for timing in timings], prepend=0.0)
    return np.array(
        [max(t.generate, t.decode, dt - t.waited) for t, dt in zip(timings, between, strict=True)]
    )


@dataclass(frozen=True)
class StreamSpeed:
    """How fast a stream came, decoding included.

    Attributes:
        ttfc_s: request to the first chunk that moves (the prefix alone is one frame).
        block_p50_s: median seconds a block takes (``block_seconds``); the first is left out if there are others.
        block_p95_s: 95th percentile of the same.
        real_time_factor: seconds of media per second, waiting for the consumer left out; above 1 is faster than real time.
        fps: frames per second of the same time.
        media_s: length of the stream.
    """

    ttfc_s: float
    block_p50_s: float
    block_p95_s: float
    real_time_factor: float
    fps: float
    media_s: float


def stream_speed(timings: list[BlockTiming]) -> StreamSpeed:
    """Sum up a whole stream of at least one block."""
    frames = np.cumsum([timing.frames for timing in timings])
    first_moving = min(int(np.searchsorted(frames, 2)), len(timings) - 1)
    work = block_seconds(timings)
    steady = work[1:] if len(work) > 1 else work
    media = max(int(frames[-1]) - 1, 1) / FPS
    return StreamSpeed(
        ttfc_s=timings[first_moving].elapsed,
        block_p50_s=float(np.percentile(steady, 50)),
        block_p95_s=float(np.percentile(steady, 95)),
        real_time_factor=media / float(work.sum()),
        fps=float(frames[-1] / work.sum()),
        media_s=media,
    )
