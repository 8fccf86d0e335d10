"""Band-limited resampling without delay, by windowed sinc functions (torch alone)."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import torch
from torch import Tensor

ZEROS = 16  # zero crossings of the sinc on either side
ROLL_OFF = 0.94  # the pass band's end, as a part of the lower rate's Nyquist frequency


def resample(sound: Tensor, rate: int, target: int) -> Tensor:
    """Resample sound; silence lies before and after it.

    Args:
        sound: float ``[1, 1, N]``, where N times ``target`` is a multiple of ``rate``.
        rate: its rate in Hz.
        target: rate of the result in Hz.

    Returns:
        Float ``[1, 1, N * target / rate]``; sample i is the sound at i / target s. It depends on
        ``ZEROS`` samples of the lower rate on either side, about 1 ms between 16 and 48 kHz.
    """
    if rate == target:
        return sound
    common = gcd(rate, target)
    step, phases = rate // common, target // common
    kernel, width = _kernel(step, phases)
    padded = torch.nn.functional.pad(sound, (width, width + step))
    found = torch.nn.functional.conv1d(padded, kernel.to(sound), stride=step)  # [1, phases, n]
    return found.transpose(1, 2).reshape(1, 1, -1)[..., : sound.shape[2] * phases // step]


@lru_cache
def _kernel(step: int, phases: int) -> tuple[Tensor, int]:
    """Filter of each phase ``[phases, 1, 2 * width + step]``, and its width in input samples."""
    cutoff = min(step, phases) * ROLL_OFF / step  # cycles per two input samples
    width = ceil(ZEROS / cutoff)
    inputs = torch.arange(-width, width + step, dtype=torch.float64)
    outputs = torch.arange(phases, dtype=torch.float64)[:, None] * step / phases
    crossings = (inputs - outputs) * cutoff
    window = torch.cos(torch.pi * crossings.clamp(-ZEROS, ZEROS) / ZEROS / 2) ** 2
    return (torch.sinc(crossings) * window * cutoff).float()[:, None], width
