"""Speed of a stream against the teacher's offline sampler. Torch only: an inference machine can measure itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict

import numpy as np

from omniforcing.core.layout import FPS
from omniforcing.evaluation.timing import BlockTiming, stream_speed


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
