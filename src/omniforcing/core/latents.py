"""Latents and text features: pairs of tensors, and batches of them.

Latents are a ``Pair`` of tensors with time in dimension 1: video ``[B, Tv, S, Cv]`` with S spatial
tokens per latent, audio ``[B, Ta, Ca]``. A formula is written once for a tensor and mapped over the
pair; a block is a slice of dimension 1 of each stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from omniforcing.core.distributed import draw
from omniforcing.core.pair import Pair

Latents = Pair[Tensor]
# Output of the text connectors for prompts: ``[B, L, D]`` per stream.
TextFeatures = Pair[Tensor]


class TextRows(Protocol):
    """Features of many captions, of which a few are asked for at a time."""

    def __len__(self) -> int:
        """Number of captions."""

    def rows(self, places: Tensor) -> TextFeatures:
        """Return the features ``[B, L, D]`` of rows ``[B]``."""


@dataclass(frozen=True)
class HeldText:
    """Features of captions in memory.

    Attributes:
        features: ``[N, L, D]`` per stream.
    """

    features: TextFeatures

    def __len__(self) -> int:
        return len(self.features.video)

    def rows(self, places: Tensor) -> TextFeatures:
        """Return the features ``[B, L, D]`` of rows ``[B]``."""
        return self.features.map(lambda f: f[places.to(f.device)])


@dataclass(frozen=True)
class Batch:
    """A batch of training data.

    Attributes:
        latents: latents, or states of trajectories ``[B, K, T, ...]``.
        text: features of the captions.
    """

    latents: Latents
    text: TextFeatures

    def rows(self, first: int, last: int) -> Batch:
        """Return samples ``first`` to ``last`` (exclusive)."""
        return Batch(
            self.latents.map(lambda t: t[first:last]), self.text.map(lambda t: t[first:last])
        )

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device."""
        return Batch(self.latents.to(device), self.text.to(device))


def concatenate(parts: list[Latents]) -> Latents:
    """Concatenate latents along time, dimension 1."""
    return Pair(
        torch.cat([part.video for part in parts], 1), torch.cat([part.audio for part in parts], 1)
    )


def noise_like(latents: Latents, generator: torch.Generator | None = None) -> Latents:
    """Draw Gaussian noise of the latents' shapes on the generator's device, video first."""
    device = generator.device if generator is not None else latents.video.device
    return latents.map(
        lambda x: draw(torch.randn, tuple(x.shape), generator, device=device, dtype=x.dtype).to(
            x.device
        )
    )


def broadcast(per_latent: Tensor, like: Tensor) -> Tensor:
    """Append dimensions to ``[B]`` or ``[B, T]`` so that it broadcasts against ``[B, T, ...]``."""
    return per_latent.reshape(per_latent.shape + (1,) * (like.ndim - per_latent.ndim))
