"""LTX-2's video VAE, without the noise and the timesteps that no release decodes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from omniforcing.networks.autoencoder import ChannelNorm, Decoded, Encoded, Posterior
from omniforcing.networks.network import Network, Recomputes, records_config
from omniforcing.networks.video_layers import (
    NORM_EPS,
    DownLevel,
    Level,
    LTX2VideoCausalConv3d,
    UpLevel,
)

T = TypeVar("T")


class VideoEncoder(Recomputes):
    """Patches of pixels, folded level by level to means and one log variance of latents.

    Args:
        config: arguments of the VAE.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.patch_size, self.patch_size_t = config["patch_size"], config["patch_size_t"]
        self.is_causal = config["encoder_causal"]
        padding, eps = config["encoder_spatial_padding_mode"], config["resnet_norm_eps"]
        channels, layers = config["latent_channels"], config["layers_per_block"]
        pixels = config["in_channels"] * self.patch_size**2
        self.conv_in = LTX2VideoCausalConv3d(pixels, channels, spatial_padding_mode=padding)
        widths = config["block_out_channels"]
        scales = _each(config["spatio_temporal_scaling"], len(layers) - 1)
        self.down_blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            kind = config["downsample_type"][index] if scales[index] else None
            level = DownLevel(channels, width, layers[index], kind, eps, padding)
            self.down_blocks.append(level)
            channels = width
        self.mid_block = Level(channels, layers[-1], eps, padding)
        self.norm_out, self.conv_act = ChannelNorm(NORM_EPS), nn.SiLU()
        latents = config["latent_channels"]
        self.conv_out = LTX2VideoCausalConv3d(channels, latents + 1, spatial_padding_mode=padding)

    def forward(self, x: Tensor, causal: bool | None = None) -> Tensor:
        """Encode pixels ``[B, 3, T, H, W]`` to means and log variances ``[B, 2 C, t, h, w]``."""
        causal, (time, patch) = causal or self.is_causal, (self.patch_size_t, self.patch_size)
        x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(2, (-1, time))
        x = x.permute(0, 1, 3, 7, 5, 2, 4, 6).flatten(1, 4)
        x = self.conv_in(x, causal)
        for level in (*self.down_blocks, self.mid_block):
            x = self.run(level, x, causal)
        x = self.conv_out(self.conv_act(self.norm_out(x)), causal)
        # One log variance serves all channels of a latent.
        return torch.cat([x, x[:, -1:].repeat(1, x.shape[1] - 2, 1, 1, 1)], 1)


class VideoDecoder(Recomputes):
    """Latents, unfolded level by level to patches of pixels.

    Args:
        config: arguments of the VAE.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.patch_size, self.patch_size_t = config["patch_size"], config["patch_size_t"]
        self.is_causal = config["decoder_causal"]
        padding, eps = config["decoder_spatial_padding_mode"], config["resnet_norm_eps"]
        layers = config["decoder_layers_per_block"][::-1]
        count = len(layers) - 1
        widths = config["decoder_block_out_channels"][::-1]
        scales = _each(config["decoder_spatio_temporal_scaling"], count)[::-1]
        residuals = _each(config["upsample_residual"], count)[::-1]
        factors = config["upsample_factor"][::-1]
        channels, latents = widths[0], config["latent_channels"]
        self.conv_in = LTX2VideoCausalConv3d(latents, channels, spatial_padding_mode=padding)
        self.mid_block = Level(channels, layers[0], eps, padding)
        self.up_blocks = nn.ModuleList()
        for index, factor in enumerate(factors[: len(widths)]):
            upsampler = (config["upsample_type"][index], residuals[index], factor)
            width = widths[index] // factor
            level = UpLevel(
                channels // factor,
                width,
                layers[index + 1],
                upsampler if scales[index] else None,
                eps,
                padding,
            )
            self.up_blocks.append(level)
            channels = width
        self.norm_out, self.conv_act = ChannelNorm(NORM_EPS), nn.SiLU()
        pixels = config["out_channels"] * self.patch_size**2
        self.conv_out = LTX2VideoCausalConv3d(channels, pixels, spatial_padding_mode=padding)

    def forward(self, z: Tensor, causal: bool | None = None) -> Tensor:
        """Decode latents ``[B, C, t, h, w]`` to pixels ``[B, 3, T, H, W]``."""
        causal = causal or self.is_causal
        x = self.conv_in(z, causal)
        for level in (self.mid_block, *self.up_blocks):
            x = self.run(level, x, causal)
        x = self.conv_out(self.conv_act(self.norm_out(x)), causal)
        x = x.unflatten(1, (-1, self.patch_size_t, self.patch_size, self.patch_size))
        x = x.permute(0, 1, 5, 2, 6, 4, 7, 3)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _each(value: T | Sequence[T], count: int) -> Sequence[T]:
    """One value per level, of which a config may give one for all."""
    return list(value) if isinstance(value, list | tuple) else [value] * count  # type: ignore[list-item]


class AutoencoderKLLTX2Video(Network):
    """The video VAE; arguments and weights have diffusers' names.

    Raises:
        ValueError: for a kind of block, noise or timesteps that it does not have.
    """

    @records_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 128,
        block_out_channels: Sequence[int] = (256, 512, 1024, 2048),
        down_block_types: Sequence[str] = ("LTX2VideoDownBlock3D",) * 4,
        decoder_block_out_channels: Sequence[int] = (256, 512, 1024),
        layers_per_block: Sequence[int] = (4, 6, 6, 2, 2),
        decoder_layers_per_block: Sequence[int] = (5, 5, 5, 5),
        spatio_temporal_scaling: bool | Sequence[bool] = (True,) * 4,
        decoder_spatio_temporal_scaling: bool | Sequence[bool] = (True,) * 3,
        decoder_inject_noise: bool | Sequence[bool] = (False,) * 4,
        downsample_type: Sequence[str] = (
            *("spatial", "temporal"),
            *("spatiotemporal", "spatiotemporal"),
        ),
        upsample_type: Sequence[str] = ("spatiotemporal",) * 3,
        upsample_residual: bool | Sequence[bool] = (True,) * 3,
        upsample_factor: Sequence[int] = (2, 2, 2),
        timestep_conditioning: bool = False,
        patch_size: int = 4,
        patch_size_t: int = 1,
        resnet_norm_eps: float = 1e-6,
        scaling_factor: float = 1.0,
        encoder_causal: bool = True,
        decoder_causal: bool = True,
        encoder_spatial_padding_mode: str = "zeros",
        decoder_spatial_padding_mode: str = "reflect",
        spatial_compression_ratio: int | None = None,
        temporal_compression_ratio: int | None = None,
    ) -> None:
        super().__init__()
        if not covers(self.config):
            raise ValueError("the video VAE has noise, timesteps or blocks of another kind")
        self.encoder, self.decoder = VideoEncoder(self.config), VideoDecoder(self.config)
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))
        halvings = 2 ** sum(_each(spatio_temporal_scaling, len(layers_per_block) - 1))
        self.spatial_compression_ratio = spatial_compression_ratio or patch_size * halvings
        self.temporal_compression_ratio = temporal_compression_ratio or patch_size_t * halvings

    def encode(self, x: Tensor) -> Encoded:
        """Encode pixels ``[B, 3, T, H, W]`` in [-1, 1]."""
        return Encoded(Posterior(self.encoder(x)))

    def decode(self, z: Tensor) -> Decoded:
        """Decode latents ``[B, C, t, h, w]`` to pixels in about [-1, 1]."""
        return Decoded(self.decoder(z))


def covers(config: dict[str, Any]) -> bool:
    """Whether this network computes what a config describes."""
    noise = config.get("decoder_inject_noise", False)
    blocks = set(config.get("down_block_types", ())) <= {"LTX2VideoDownBlock3D"}
    noisy = any(noise) if isinstance(noise, list | tuple) else noise
    return blocks and not noisy and not config.get("timestep_conditioning", False)
