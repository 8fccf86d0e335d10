"""Measure the speed of a stream, and compare it with the teacher's offline sampler.

Needs nothing beyond an inference machine's packages, so that such a machine can measure itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.layout import FPS

T = TypeVar("T")


@dataclass(frozen=True)
class BlockTiming:
    """Timing of one block of a stream.

    Attributes:
        frames: frames that it adds.
        generate: seconds of generating it, during which the block before was decoded.
        decode: seconds of decoding it, during which the next block was generated.
        elapsed: seconds from the request until it was decoded.
        waited: seconds before it in which the stream waited for its consumer, who had no room or
            had paused it.
        generated: seconds from the request until it was generated.
    """

    frames: int
    generate: float
    decode: float
    elapsed: float
    waited: float = 0.0
    generated: float = 0.0


def block_seconds(timings: list[BlockTiming]) -> NDArray[np.float64]:
    """Compute the seconds that each block took ``[N]``, waiting for the consumer left out."""
    between = np.diff([timing.elapsed for timing in timings], prepend=0.0)
    seconds = []
    for timing, since_last in zip(timings, between, strict=True):
        # Generation runs ahead while decoding waits, so that a block may follow the last one at
        # once: it counts for no less than either of its halves.
        seconds.append(max(timing.generate, timing.decode, since_last - timing.waited))
    return np.array(seconds)


@dataclass(frozen=True)
class StreamSpeed:
    """Speed of a stream, decoding included; its figures are always reported together.

    Attributes:
        ttfc_s: time to first chunk: seconds from the request to the first chunk that moves (the
            prefix alone is one frame).
        block_p50_s: median of ``block_seconds``; the first block is left out if there are others.
        block_p95_s: 95th percentile of the same.
        real_time_factor: seconds of media per second of ``block_seconds``; above 1 is faster than
            real time.
        fps: frames per second of the same.
        media_s: length of the stream in seconds.
    """

    ttfc_s: float
    block_p50_s: float
    block_p95_s: float
    real_time_factor: float
    fps: float
    media_s: float


def stream_speed(timings: list[BlockTiming]) -> StreamSpeed:
    """Compute the speed of a whole stream of at least one block."""
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
    """Time a stream from prompt to decoded media, after one run that warms up.

    Args:
        open_stream: begins the same finite stream anew and yields each block's timing as it comes,
            such as ``lambda: (chunk.timing for chunk in engine.stream(prompt, seconds))``.
        repeats: runs that are timed.

    Returns:
        Medians over the runs of the figures of ``StreamSpeed``, ``stalls``, ``stream_s`` (from the
        request to the last chunk) and ``generate_s`` (its part that generates latents).
    """
    for _ in open_stream():
        pass
    runs = []
    for _ in range(repeats):
        timings = list(open_stream())
        whole = {
            "stream_s": timings[-1].elapsed,
            "generate_s": sum(timing.generate for timing in timings),
        }
        runs.append({**asdict(stream_speed(timings)), "stalls": stalls(timings), **whole})
    medians = {}
    for name in runs[0]:
        medians[name] = float(np.median([run[name] for run in runs]))
    return medians


def stalls(timings: list[BlockTiming]) -> int:
    """Count how often a viewer who starts with the first chunk that moves runs out of frames."""
    count, shown = 0, 0
    # Seconds at which the viewer shows frame 0, moved on by every wait.
    start: float | None = None
    for timing in timings:
        if start is not None and timing.elapsed > start + shown / FPS:
            count += 1
            start = timing.elapsed - shown / FPS
        shown += timing.frames
        if start is None and shown > 1:
            start = timing.elapsed
    return count


def measure_offline(
    sample: Callable[[], T], decode: Callable[[T], object], repeats: int = 3
) -> tuple[float, float]:
    """Time an offline sampler, which makes a whole clip at once, after a run that warms up.

    Args:
        sample: makes the latents of a clip, and returns when they are there.
        decode: decodes them.
        repeats: runs that are timed.

    Returns:
        Median seconds of the decoded clip, and of its latents alone.
    """
    sampled, whole = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        latents = sample()
        sampled.append(time.perf_counter() - start)
        decode(latents)
        whole.append(time.perf_counter() - start)
    return float(np.median(whole[1:])), float(np.median(sampled[1:]))


def against_teacher(
    stream: dict[str, float], teacher_s: float, teacher_generate_s: float
) -> dict[str, float]:
    """Compare a stream with the teacher on a clip of the same length.

    Args:
        stream: figures of ``measure_stream``.
        teacher_s: seconds that the teacher takes for the decoded clip.
        teacher_generate_s: seconds that it takes for the latents alone.

    Returns:
        The stream's figures, the teacher's, and how many times longer the teacher takes:
        ``speedup`` for the whole clip, ``ttfc_speedup`` for the first chunk against the teacher's
        only one, ``generate_speedup`` for the latents.
    """
    return {
        **stream,
        "teacher_s": teacher_s,
        "teacher_generate_s": teacher_generate_s,
        "speedup": teacher_s / stream["stream_s"],
        "ttfc_speedup": teacher_s / stream["ttfc_s"],
        "generate_speedup": teacher_generate_s / stream["generate_s"],
    }


def speed_line(values: dict[str, Any]) -> str:
    """Say the figures of a stream in one line for people."""
    return (
        "first chunk after {ttfc_s:.2f} s, blocks {block_p50_s:.2f} s (p95 {block_p95_s:.2f} s), "
        "real-time factor {real_time_factor:.2f}, {fps:.1f} FPS, decoding included | "
        "{width}x{height}, {steps} steps, window {window}, {device}, {threads} threads"
    ).format(**values) + "".join(f", {name}" for name in values["speed_ups"])
