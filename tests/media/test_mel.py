"""The mel front end is LTX-2's: its frames, its bands, its floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from omniforcing.core.layout import SAMPLE_RATE, clip_samples
from omniforcing.media.mel import FLOOR, MEL_BINS, log_mel


def tone(hertz: float, seconds: int = 1) -> torch.Tensor:
    time = torch.arange(clip_samples(seconds)) / SAMPLE_RATE
    return torch.sin(2 * math.pi * hertz * time).expand(1, 2, -1)


@pytest.mark.parametrize("seconds", [1, 3])
def test_k_seconds_give_1_plus_100_k_frames(seconds: int) -> None:
    assert log_mel(tone(440, seconds)).shape == (1, 2, 1 + 100 * seconds, MEL_BINS)


def test_silence_is_the_logarithm_of_the_floor() -> None:
    assert torch.allclose(log_mel(torch.zeros(1, 2, 16000)), torch.tensor(math.log(FLOOR)))


def test_a_frame_is_centred_on_its_sample() -> None:
    samples = torch.zeros(1, 2, 16000)
    samples[..., 160 * 40] = 1.0
    energy = log_mel(samples)[0, 0].exp().sum(-1)
    assert energy.argmax() == 40
    assert torch.allclose(energy[38], energy[42], rtol=1e-3)


def slaney_bands() -> np.ndarray:
    """64 triangles between 0 and 8 kHz on Slaney's scale, each of unit area, on the 513 bins of a
    1024-point transform.
    """

    def hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, 200 / 3 * mel, 1000 * 6.4 ** ((mel - 15) / 27))

    edges = hertz(np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), MEL_BINS + 2))
    bins = np.arange(513) * SAMPLE_RATE / 1024
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.clip(np.minimum(rise, fall), 0, None) * 2 / (edges[2:] - edges[:-2])[:, None]


def test_values_are_magnitudes_in_slaney_bands_of_unit_area() -> None:
    samples = torch.randn(1, 2, 16000, generator=torch.Generator().manual_seed(0))
    frame = samples[0, 0, 160 * 50 - 512 : 160 * 50 + 512].double().numpy() * np.hanning(1025)[:-1]
    expected = np.log(np.maximum(slaney_bands() @ np.abs(np.fft.rfft(frame)), FLOOR))
    assert np.allclose(log_mel(samples)[0, 0, 50].numpy(), expected, atol=1e-3)


def test_channels_do_not_mix() -> None:
    left = tone(440).clone()
    left[:, 1] = 0
    assert torch.allclose(log_mel(left)[:, 1], torch.tensor(math.log(FLOOR)))
