"""What both VAEs have: their results, and the channel norm between their convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Divide by the root mean square over the channels, dimension 1.

    Args:
        eps: added to the mean square.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + self.eps)


class Posterior:
    """Normal distribution of latents.

    Args:
        parameters: means and log variances ``[B, 2 C, ...]``.
    """

    def __init__(self, parameters: Tensor) -> None:
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> Tensor:
        """Most likely latents."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents."""
        std = torch.exp(0.5 * self.logvar)
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.mean + std * noise.to(self.mean.device)


@dataclass(frozen=True)
class Encoded:
    """Result of an encoder."""

    latent_dist: Posterior


@dataclass(frozen=True)
class Decoded:
    """Result of a decoder."""

    sample: Tensor
