"""Speed from block timings, against the teacher."""

import itertools
import time
from typing import Any

import pytest

from omniforcing.evaluation.speed import (
    BlockTiming,
    against_teacher,
    measure_offline,
    measure_stream,
    stalls,
)


def timings(*elapsed: float, frames: int = 24) -> list[BlockTiming]:
    return [BlockTiming(frames, 0.1, 0.0, when) for when in elapsed]


def test_blocks_faster_than_real_time_never_stall() -> None:
    assert stalls([BlockTiming(1, 0.1, 0, 0.1), *timings(0.6, 1.1, 1.6, 2.1)]) == 0


def test_a_late_block_stalls_once_and_delays_what_follows() -> None:
    # 24 frames arrive at 1.0 and last until 2.0; the next come at 2.5, then play until 3.5, then in
    # time.
    assert stalls(timings(1.0, 2.5, 3.4, 4.4)) == 1
    assert stalls(timings(1.0, 2.5, 3.6)) == 2


def test_a_stream_is_timed_after_a_warm_up_and_medians_are_taken() -> None:
    runs = itertools.count()

    def open_stream() -> Any:
        slow = 10.0 if next(runs) == 0 else 1.0
        yield BlockTiming(1, 0.1 * slow, 0.0, 0.1 * slow)
        yield BlockTiming(24, 0.2 * slow, 0.2 * slow, 0.5 * slow)
        yield BlockTiming(24, 0.2 * slow, 0.2 * slow, 0.9 * slow)

    found = measure_stream(open_stream, repeats=3)
    assert next(runs) == 4
    assert found["ttfc_s"] == pytest.approx(0.5) and found["stream_s"] == pytest.approx(0.9)
    assert found["block_p50_s"] == pytest.approx(0.4) and found["stalls"] == 0


def test_speed_up_compares_equal_clips() -> None:
    found = against_teacher(
        {"stream_s": 2.0, "ttfc_s": 0.5, "generate_s": 1.0}, teacher_s=8.0, teacher_generate_s=7.0
    )
    assert found["generate_speedup"] == 7
    assert found["speedup"] == 4 and found["ttfc_speedup"] == 16 and found["teacher_s"] == 8


def test_the_offline_sampler_is_timed_without_its_warm_up() -> None:
    calls = itertools.count()
    decoded: list[float] = []

    def sample() -> float:
        seconds = 0.5 if next(calls) == 0 else 0.01
        time.sleep(seconds)
        return seconds

    def decode(latents: float) -> None:
        time.sleep(0.05)
        decoded.append(latents)

    whole, latents = measure_offline(sample, decode, repeats=3)
    assert 0.01 <= latents <= whole - 0.05 < 0.45
    assert decoded == [0.5, 0.01, 0.01, 0.01]
