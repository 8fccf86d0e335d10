"""Sound whose stamps scatter, as recorders that stamp what comes when it comes write them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.media.mel import resample
from omniforcing.media.reading.runs import Run, placed, runs_of

LENGTH = 320  # samples of a frame: 20 ms
STEP = 2 * np.pi * 440 / SAMPLE_RATE  # the largest of the tone from one sample to the next


def runs(stamps: NDArray[Any], rate: int = SAMPLE_RATE) -> list[Run]:
    """A tone in frames that follow each other, at ``stamps`` seconds."""
    tone = np.sin(STEP * SAMPLE_RATE / rate * np.arange(len(stamps) * LENGTH))
    parts = np.split(np.stack([tone, tone]).astype(np.float32), len(stamps), 1)
    return runs_of([(float(at), rate, part) for at, part in zip(stamps, parts, strict=True)])


def lengths(found: Sequence[Run]) -> list[int]:
    return [len(run.parts) for run in found]


@pytest.mark.parametrize("scatter", [0.001, 0.005, 0.01, 0.02, 0.04])
def test_scattered_stamps_leave_no_gaps(scatter: float) -> None:
    stamps = np.arange(500) * 0.02 + np.random.default_rng(0).uniform(-scatter, scatter, 500)
    stamps[0] = 0.0
    sound = placed(runs(stamps), 0.0)
    assert np.abs(np.diff(sound[0, 800:-800])).max() < 1.02 * STEP
    assert abs(sound.shape[1] - 10 * SAMPLE_RATE) < 0.01 * SAMPLE_RATE


@pytest.mark.parametrize("gap", [0.03, 0.06, 0.3, 3.0, -0.03, -0.3])
def test_a_lasting_jump_is_a_gap_or_an_overlap(gap: float) -> None:
    stamps = np.arange(200) * 0.02
    stamps[100:] += gap
    found = runs(stamps)
    assert lengths(found) == [100, 100] and found[1].start == pytest.approx(2 + gap)
    assert placed(found, 0.0).shape[1] == round((4 + gap) * SAMPLE_RATE)


def test_pauses_between_all_frames_stay() -> None:
    """A codec that sends nothing of silence."""
    assert len(runs(np.arange(20) * 0.06)) == 20


def test_a_late_frame_is_no_gap() -> None:
    stamps = np.arange(200) * 0.02
    stamps[100] += 0.03
    assert len(runs(stamps)) == 1


def test_a_rate_is_changed_without_a_seam_between_blocks() -> None:
    """A minute is resampled at a time."""
    rate = 48_000
    sound = placed(runs(np.arange(18_000) * LENGTH / rate, rate), 0.0)
    assert sound.shape[1] == 120 * SAMPLE_RATE
    wanted = np.sin(STEP * np.arange(59 * SAMPLE_RATE, 61 * SAMPLE_RATE))
    assert np.abs(sound[0, 59 * SAMPLE_RATE : 61 * SAMPLE_RATE] - wanted).max() < 1e-3


@pytest.mark.parametrize(("hz", "low", "high"), [(7_000, -0.1, 0.1), (8_500, -999, -100)])
def test_what_16_khz_can_hold_is_kept_and_the_rest_does_not_fold(
    hz: int, low: float, high: float
) -> None:
    tone = torch.sin(2 * torch.pi * hz / 48_000 * torch.arange(96_000, dtype=torch.float64))
    inner = resample(tone[None], 48_000)[0, 4_000:-4_000]
    level = 10 * torch.log10(2 * inner.square().mean() + 1e-30)
    assert low < level < high
