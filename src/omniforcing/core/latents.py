"""Pairs of a video and an audio value, above all latents.

Latents are a ``Pair`` of tensors with time in dimension 1: video ``[B, Tv, S, Cv]`` with S spatial
tokens per latent, audio ``[B, Ta, Ca]``. A formula is written once for a tensor and mapped over the
pair; a block is a slice of dimension 1 of each stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from omniforcing.core.distributed import draw

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Pair(Generic[T]):
    """One value for video and one for audio."""

    video: T
    audio: T

    def __iter__(self) -> Iterator[T]:
        yield self.video
        yield self.audio

    def map(self, function: Callable[..., U], *others: Pair[Any]) -> Pair[U]:
        """Apply a function to each modality; values of ``others`` are its further arguments."""
        return Pair(
            function(self.video, *(other.video for other in others)),
            function(self.audio, *(other.audio for other in others)),
        )

    def to(self: Pair[Tensor], device: str | torch.device) -> Pair[Tensor]:
        """Move both tensors to a device."""
        return self.map(lambda x: x.to(device))

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield ``("video", value)`` and ``("audio", value)``, for logging and files."""
        yield "video", self.video
        yield "audio", self.audio


Latents = Pair[Tensor]
# Output of the text connectors for prompts: ``[B, L, D]`` per stream.
TextFeatures = Pair[Tensor]

# Frames uint8 ``[..., T, H, W, 3]`` and samples float32 ``[..., 2, N]``, as arrays or tensors.
Media = Pair[Any]


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
