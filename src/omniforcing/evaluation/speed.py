"""Speed of a stream, and against the teacher's offline sampler.

Torch only: an inference machine can measure itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

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


def measure_stream(
    open_stream: Callable[[], Iterable[BlockTiming]], repeats: int = 3
) -> dict[str, float]:
    """Time a stream from prompt to decoded media ``repeats`` times, after one run that warms up; medians over the runs.

    ``open_stream`` begins the same finite stream anew and yields each block's timing as it comes:
    ``lambda: (chunk.timing for chunk in engine.stream(prompt, seconds))``.

    Returns:
        The figures of ``StreamSpeed``, ``stalls``, ``stream_s``, from the request to the last chunk, and ``generate_s``, what
        of it went into latents.
    """
    _drain(open_stream)
    runs = []
    for _ in range(repeats):
        timings = list(open_stream())
        whole = {
            "stream_s": timings[-1].elapsed,
            "generate_s": sum(timing.generate for timing in timings),
        }
        runs.append({**asdict(stream_speed(timings)), "stalls": stalls(timings), **whole})
    return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


def _drain(open_stream: Callable[[], Iterable[BlockTiming]]) -> None:
    for _ in open_stream():
        pass


def stalls(timings: list[BlockTiming]) -> int:
    """How often a viewer who starts with the first chunk that moves would run out of picture and wait."""
    count, shown = 0, 0
    start: float | None = None
    for timing in timings:
        if start is not None and timing.elapsed > start + shown / FPS:
            count += 1
            start = timing.elapsed - shown / FPS
        shown += timing.frames
        if start is None and shown > 1:
            start = timing.elapsed
    return count


def measure_offline(sample: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of ``sample``, which makes a whole clip, after one run that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        sample()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def against_teacher(
    stream: dict[str, float], teacher_s: float, teacher_generate_s: float
) -> dict[str, float]:
    """A stream's figures, and how many times longer the teacher takes for a clip of the same length.

    ``speedup`` compares the whole clip, ``ttfc_speedup`` the first chunk with the teacher's only one, both decoded;
    ``generate_speedup`` compares the latents alone.
    """
    return {
        **stream,
        "teacher_s": teacher_s,
        "teacher_generate_s": teacher_generate_s,
        "speedup": teacher_s / stream["stream_s"],
        "ttfc_speedup": teacher_s / stream["ttfc_s"],
        "generate_speedup": teacher_generate_s / stream["generate_s"],
    }
