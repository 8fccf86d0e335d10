"""LTX-2.5's diffusion decoder over a clip, and piece by piece over a stream.

It makes pixels out of noise and latents. The noise of a frame follows from a seed and the frame's
number, so that a frame gets the same noise however the stream is cut. The decoder looks both ways:
a piece is decoded as a clip of its own with latents before and after it (``Reach``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omniforcing.codec.networks import CodecError
from omniforcing.codec.reach import Reach
from omniforcing.core.random import step_generator
from omniforcing.core.states import State


def frame_noise(seed: int, first: int, count: int, height: int, width: int) -> Tensor:
    """Draw the noise of ``count`` frames from number ``first`` on, ``[1, 3, count, h, w]``."""
    frames = [
        torch.randn(3, height, width, generator=step_generator(seed, frame, "pixels"))
        for frame in range(first, first + count)
    ]
    return torch.stack(frames, 1)[None]


def decode_with_noise(network: Any, z: Tensor, seed: int, first: int) -> Tensor:
    """Decode latents as a clip.

    Args:
        network: ``LTX2VideoDiffusionDecoderModel``.
        z: denormalised latents ``[B, C, T, H, W]``; those of a batch get the same noise.
        seed: seed of the noise.
        first: number of the first latent in the stream, whose last frame alone comes out.

    Returns:
        Pixels ``[B, 3, 1 + 8 (T - 1), h, w]``.

    Raises:
        CodecError: if there are too few latents.
    """
    config, (count, rows, columns) = network.config, z.shape[2:]
    if count < network.smallest[0]:
        raise CodecError(
            "codec.too-few-latents",
            f"the diffusion decoder needs {network.smallest[0]} latents and has {count}; decode "
            "a longer clip, or set codec.video_decoder=convolutional",
        )
    rate, ratio = config.temporal_compression_ratio, config.spatial_compression_ratio
    size = rows * ratio, columns * ratio
    noise = frame_noise(seed, rate * first, 1 + rate * (count - 1), *size)
    noise = noise.to(z.device, z.dtype).expand(z.shape[0], -1, -1, -1, -1)
    pixels: Tensor = network.decode(z, noise).sample
    return pixels


def refuse_misfit(network: Any, vae: Any, grid: tuple[int, int]) -> None:
    """Refuse a diffusion decoder of other latents, or one whose windows are larger than a picture.

    Args:
        network: ``LTX2VideoDiffusionDecoderModel``.
        vae: the video VAE that encodes.
        grid: rows and columns of a picture's latents.

    Raises:
        CodecError: with what is found and what is needed.
    """
    found, needed = network.config.latent_channels, vae.config.latent_channels
    if found != needed:
        raise CodecError(
            "codec.mixed-decoders",
            f"the diffusion decoder reads latents of {found} channels, and the video VAE makes "
            f"{needed}; take both of one release",
        )
    _, *least = network.smallest
    if grid[0] < least[0] or grid[1] < least[1]:
        ratio = network.config.spatial_compression_ratio
        raise CodecError(
            "codec.picture-too-small",
            f"the diffusion decoder needs pictures of at least {least[1] * ratio}x"
            f"{least[0] * ratio} pixels, not {grid[1] * ratio}x{grid[0] * ratio}; make them "
            "larger, or set codec.video_decoder=convolutional",
        )


class StreamingDiffusionDecoder:
    """Decode video latents a few at a time; what is beyond the reach is missed.

    Args:
        network: ``LTX2VideoDiffusionDecoderModel``, which streams may share.
        reach: latents after and before a piece that it is decoded with.
        seed: seed of the noise.

    Raises:
        CodecError: if a reach of so few latents leaves pieces that are too short.
    """

    def __init__(self, network: Any, reach: Reach, seed: int) -> None:
        if reach.blend or 1 + reach.ahead < network.smallest[0] or reach.again < 1:
            raise CodecError(
                "codec.impossible-reach",
                f"{reach} is impossible for a diffusion decoder: it needs at least "
                f"{network.smallest[0] - 1} ahead and 1 again, and does not blend",
            )
        self._network, self.reach, self._seed = network, reach, seed
        # Latents are counted from 0: ``_held`` begins with number ``_first``, and the frames of all
        # before number ``_done`` have come out.
        self._held: Tensor | None = None
        self._first = self._done = 0

    def push(self, z: Tensor) -> Tensor:
        """Decode the next latents.

        Args:
            z: denormalised latents ``[B, C, T, H, W]``.

        Returns:
            Pixels ``[B, 3, T', h, w]`` of all latents but the last ``reach.ahead`` of those pushed
            so far: 8 frames for each latent, 1 for the first of the stream.
        """
        self._held = z if self._held is None else torch.cat([self._held, z], 2)
        return self._emit(self._first + self._held.shape[2] - self.reach.ahead)

    def flush(self) -> Tensor:
        """End the clip; returns the frames held back."""
        assert self._held is not None, "push before flush"
        return self._emit(self._first + self._held.shape[2])

    def _emit(self, stop: int) -> Tensor:
        """Return the frames of latents ``_done`` to ``stop``."""
        held, config = self._held, self._network.config
        assert held is not None, "push before flush"
        if stop <= self._done:
            size = (config.spatial_compression_ratio * n for n in held.shape[3:])
            return held.new_zeros(held.shape[0], 3, 0, *size)
        pixels = decode_with_noise(self._network, held, self._seed, self._first)
        rate = config.temporal_compression_ratio
        # Frame 0 of these is the last one of latent ``_first``.
        begin, end = (rate * (n - 1 - self._first) + 1 for n in (self._done, stop))
        keep = max(0, stop - self.reach.again)
        # A copy, for a view would keep all latents in memory.
        self._held = held[:, :, max(0, keep - self._first) :].clone()
        self._first, self._done = max(self._first, keep), stop
        return pixels[:, :, max(0, begin) : end]

    def state(self) -> State:
        """Copy the state after at least one ``push``, for ``restore``."""
        assert self._held is not None, "push before taking the state"
        return {"held": self._held.clone(), "places": torch.tensor([self._first, self._done])}

    def restore(self, state: State) -> None:
        """Continue, in a fresh decoder of the same seed, where ``state`` was taken."""
        self._held = state["held"].clone()
        self._first, self._done = state["places"].tolist()
