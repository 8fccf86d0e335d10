"""Flow matching: sigmas, adding noise, Euler steps, guidance.

LTX-2's convention: ``x_sigma = (1 - sigma) x0 + sigma eps``, and the network predicts
``v = eps - x0``. Sigma stays in fp32. Functions take one tensor ``[B, T, ...]``, with sigma
``[B]``, ``[B, T]`` or a float; map them over a ``Pair``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omniforcing.core.distributed import draw
from omniforcing.core.latents import broadcast


def _like(sigma: Tensor | float, x: Tensor) -> Tensor | float:
    return broadcast(sigma.to(torch.float32), x) if isinstance(sigma, Tensor) else sigma


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Add noise to a clean sample: ``(1 - sigma) x0 + sigma eps``."""
    s = _like(sigma, x0)
    return (1 - s) * x0 + s * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """Target of flow matching, ``eps - x0``."""
    return noise - x0


def to_x0(x: Tensor, v: Tensor, sigma: Tensor | float) -> Tensor:
    """Clean estimate from a velocity, ``x - sigma v``."""
    return x - _like(sigma, x) * v


def euler(x: Tensor, v: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """Take an Euler step of the probability-flow ODE, ``x + (sigma_next - sigma) v``."""
    return x + (_like(sigma_next, x) - _like(sigma, x)) * v


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor | float) -> Tensor:
    """Apply classifier-free guidance to clean estimates, ``c + (w - 1)(c - u)`` (paper, 3.2).

    Args:
        conditional: estimate c under the prompt.
        unconditional: estimate u under the empty prompt.
        scale: guidance w, a float or ``[B]``.
    """
    return conditional + (_like(scale, conditional) - 1) * (conditional - unconditional)


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Shift sigmas as LTX-2's scheduler does: ``e^m / (e^m + 1/sigma - 1)`` with ``m = shift``.

    0 stays 0 and 1 stays 1.
    """
    return sigma / (sigma + (1 - sigma) * math.exp(-shift))


def sampling_sigmas(steps: int, shift: float, terminal: float | None = None) -> list[float]:
    """Make ``steps + 1`` descending sigmas from 1 to 0, as LTX-2's scheduler does.

    LTX-2's own schedule is ``sampling_sigmas(40, 2.05, 0.1)``.

    Args:
        steps: number of denoising steps.
        shift: shift of the sigmas (``shift_sigma``).
        terminal: value to which the last non-zero sigma is stretched; None to leave it.
    """
    s = shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    if terminal is not None and steps > 1:
        s[:-1] = 1 - (1 - s[:-1]) * (1 - terminal) / (1 - s[-2])
    return [float(x) for x in s]


def sample_sigma(
    batch: int, low: float, high: float, shift: float, generator: torch.Generator
) -> Tensor:
    """Draw a sigma per sample, fp32 ``[B]``: uniform, shifted, then scaled to ``[low, high]``."""
    u = draw(torch.rand, (batch,), generator, device=generator.device, dtype=torch.float32)
    return low + (high - low) * shift_sigma(u, shift)
