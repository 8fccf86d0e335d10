"""LTX-2's audio VAE as released: causal in time, normalised over channels, without attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniforcing.networks.autoencoder import ChannelNorm, Decoded, Encoded, Posterior
from omniforcing.networks.network import Network, records_config

FACTOR = 4  # mel frames and bins of a latent
_EPS = 1e-6
# What this network has of the choices that diffusers offers.
_ONLY = {
    "norm_type": "pixel",
    "causality_axis": "height",
    "mid_block_add_attention": False,
    "dropout": 0.0,
}


class LTX2AudioCausalConv2d(nn.Module):
    """2-D convolution that pads time, dimension 2, in front alone.

    Args:
        in_channels: channels that go in.
        out_channels: channels that come out.
        kernel_size: size of the kernel, 1 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        side = kernel_size // 2
        self.padding = (side, side, kernel_size - 1, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class AudioResnetBlock(nn.Module):
    """Two convolutions with norms and activations in front, added to their input.

    Args:
        in_channels: channels that go in.
        out_channels: channels that come out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.non_linearity = ChannelNorm(_EPS), nn.SiLU()
        self.conv1 = LTX2AudioCausalConv2d(in_channels, out_channels)
        self.norm2 = ChannelNorm(_EPS)
        self.conv2 = LTX2AudioCausalConv2d(out_channels, out_channels)
        self.nin_shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.nin_shortcut = LTX2AudioCausalConv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.non_linearity(self.norm1(x)))
        h = self.conv2(self.non_linearity(self.norm2(h)))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class AudioDownsample(nn.Module):
    """Halve time and frequency.

    Args:
        channels: channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 2, 0)))


class LTX2AudioUpsample(nn.Module):
    """Double time and frequency; the first frame of the stream fills no pair of its own.

    Args:
        channels: channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = LTX2AudioCausalConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))[:, :, 1:]


class AudioLevel(nn.Module):
    """Resnet blocks at one resolution, and what leads away from it.

    Args:
        in_channels: channels that go in.
        channels: channels that come out.
        layers: number of blocks.
    """

    downsample: Any
    upsample: Any

    def __init__(self, in_channels: int, channels: int, layers: int) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (layers - 1)
        self.block = nn.ModuleList(AudioResnetBlock(width, channels) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class AudioMiddle(nn.Module):
    """The two blocks of the lowest resolution.

    Args:
        channels: channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = AudioResnetBlock(channels, channels)
        self.block_2 = AudioResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class AudioEncoder(nn.Module):
    """Log-mel, halved level by level to means and log variances of latents.

    Args:
        config: arguments of the VAE.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        base, multipliers = config["base_channels"], config["ch_mult"]
        self.conv_in = LTX2AudioCausalConv2d(config["in_channels"], base)
        self.down: Any = nn.ModuleList()
        channels = base
        for index, multiplier in enumerate(multipliers):
            level = AudioLevel(channels, base * multiplier, config["num_res_blocks"])
            channels = base * multiplier
            if index < len(multipliers) - 1:
                level.downsample = AudioDownsample(channels)
            self.down.append(level)
        self.mid = AudioMiddle(channels)
        self.norm_out, self.non_linearity = ChannelNorm(_EPS), nn.SiLU()
        latents = config["latent_channels"] * (2 if config["double_z"] else 1)
        self.conv_out = LTX2AudioCausalConv2d(channels, latents)

    def forward(self, x: Tensor) -> Tensor:
        """Encode log-mel ``[B, C, T, F]`` to means and log variances ``[B, 2 c, t, f]``."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(self.non_linearity(self.norm_out(self.mid(x))))


class AudioDecoder(nn.Module):
    """Latents, doubled level by level to log-mel.

    Args:
        config: arguments of the VAE.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        # None for a piece within a stream, whose first latent makes as many frames as the others.
        self.causality_axis: str | None = config["causality_axis"]
        self.mel_bins = config["mel_bins"]
        base, multipliers = config["base_channels"], config["ch_mult"]
        channels = base * multipliers[-1]
        self.conv_in = LTX2AudioCausalConv2d(config["latent_channels"], channels)
        self.non_linearity = nn.SiLU()
        self.mid = AudioMiddle(channels)
        levels = []
        for index in reversed(range(len(multipliers))):
            level = AudioLevel(channels, base * multipliers[index], config["num_res_blocks"] + 1)
            channels = base * multipliers[index]
            if index:
                level.upsample = LTX2AudioUpsample(channels)
            levels.append(level)
        self.up: Any = nn.ModuleList(levels[::-1])
        self.norm_out = ChannelNorm(_EPS)
        self.conv_out = LTX2AudioCausalConv2d(channels, config["output_channels"])

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents ``[B, c, t, f]`` to log-mel ``[B, C, T, F]``."""
        frames = z.shape[2] * FACTOR
        if self.causality_axis is not None:
            frames -= FACTOR - 1
        bins = self.mel_bins or z.shape[3]
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        mel = self.conv_out(self.non_linearity(self.norm_out(x)))[:, :, :frames, :bins]
        lacking = (0, bins - mel.shape[3], 0, frames - mel.shape[2])
        return F.pad(mel, lacking) if any(lacking) else mel


class AutoencoderKLLTX2Audio(Network):
    """The audio VAE; arguments and weights have diffusers' names.

    Raises:
        ValueError: for a norm, an axis or attention that it does not have.
    """

    @records_config
    def __init__(
        self,
        base_channels: int = 128,
        output_channels: int = 2,
        ch_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] | None = None,
        in_channels: int = 2,
        resolution: int = 256,
        latent_channels: int = 8,
        norm_type: str = "pixel",
        causality_axis: str | None = "height",
        dropout: float = 0.0,
        mid_block_add_attention: bool = False,
        sample_rate: int = 16000,
        mel_hop_length: int = 160,
        is_causal: bool = True,
        mel_bins: int | None = 64,
        double_z: bool = True,
    ) -> None:
        super().__init__()
        if not covers(self.config):
            raise ValueError("the audio VAE has another norm or axis, or attention")
        self.encoder, self.decoder = AudioEncoder(self.config), AudioDecoder(self.config)
        # As diffusers has it: sized by the base channels, which must be those of a packed latent.
        self.register_buffer("latents_mean", torch.zeros(base_channels))
        self.register_buffer("latents_std", torch.ones(base_channels))
        self.temporal_compression_ratio = self.mel_compression_ratio = FACTOR

    def encode(self, x: Tensor) -> Encoded:
        """Encode log-mel ``[B, C, T, F]``."""
        return Encoded(Posterior(self.encoder(x)))

    def decode(self, z: Tensor) -> Decoded:
        """Decode latents ``[B, c, t, f]`` to log-mel."""
        return Decoded(self.decoder(z))


def covers(config: dict[str, Any]) -> bool:
    """Whether this network computes what a config describes."""
    only = all(config.get(key, value) == value for key, value in _ONLY.items())
    return only and not config.get("attn_resolutions")
