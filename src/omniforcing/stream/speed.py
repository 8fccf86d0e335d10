"""The figures of a stream that are always reported together (design section 9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omniforcing.layout import FPS


@dataclass(frozen=True)
class BlockTiming:
    """One block on the clock: seconds spent generating and decoding it, and since the request."""

    frames: int
    generate: float
    decode: float
    elapsed: float


@dataclass(frozen=True)
class StreamSpeed:
    """How fast a stream came, decoding included.

    Attributes:
        ttfc_s: request to the first chunk that moves (the prefix alone is one frame).
        block_p50_s: median seconds of work for a block; the first block is left out if there are others.
        block_p95_s: 95th percentile of the same.
        real_time_factor: seconds of media per second of work; above 1 is faster than real time.
        fps: frames per second of work.
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
    work = np.array([timing.generate + timing.decode for timing in timings])
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
