"""LTX-2.0's vocoder: log-mel to samples by upsampling and residual blocks with leaky rectifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniforcing.networks.network import Network, records_config

_ONLY = {"act_fn": "leaky_relu", "antialias": False}


class ResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair added to its input.

    Args:
        channels: channels.
        kernel_size: size of the kernels.
        dilations: one per pair.
        slope: of the rectifiers.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilations: Sequence[int], slope: float
    ) -> None:
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding="same")
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, padding="same") for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            h = first(F.leaky_relu(x, self.slope))
            x = x + second(F.leaky_relu(h, self.slope))
        return x


class LTX2Vocoder(Network):
    """The vocoder; arguments and weights have diffusers' names.

    Raises:
        ValueError: for lists of different lengths, or activations that it does not have.
    """

    @records_config
    def __init__(
        self,
        in_channels: int = 128,
        hidden_channels: int = 1024,
        out_channels: int = 2,
        upsample_kernel_sizes: Sequence[int] = (16, 15, 8, 4, 4),
        upsample_factors: Sequence[int] = (6, 5, 2, 2, 2),
        resnet_kernel_sizes: Sequence[int] = (3, 7, 11),
        resnet_dilations: Sequence[Sequence[int]] = ((1, 3, 5),) * 3,
        act_fn: str = "leaky_relu",
        leaky_relu_negative_slope: float = 0.1,
        antialias: bool = False,
        antialias_ratio: int = 2,
        antialias_kernel_size: int = 12,
        final_act_fn: str | None = "tanh",
        final_bias: bool = True,
        output_sampling_rate: int = 24000,
    ) -> None:
        super().__init__()
        if not covers(self.config):
            raise ValueError(f"the vocoder's activations are {act_fn} or antialiased")
        self.slope, self.final_act_fn = leaky_relu_negative_slope, final_act_fn
        self.out_channels = out_channels
        self.conv_in = nn.Conv1d(in_channels, hidden_channels, 7, padding=3)
        self.upsamplers, self.resnets = nn.ModuleList(), nn.ModuleList()
        channels = hidden_channels
        blocks = list(zip(resnet_kernel_sizes, resnet_dilations, strict=True))
        for stride, kernel in zip(upsample_factors, upsample_kernel_sizes, strict=True):
            padding = (kernel - stride) // 2
            upsampler = nn.ConvTranspose1d(channels, channels // 2, kernel, stride, padding)
            self.upsamplers.append(upsampler)
            channels //= 2
            for size, dilations in blocks:
                self.resnets.append(ResBlock(channels, size, dilations, self.slope))
        self.blocks_per_level = len(blocks)
        self.act_out = nn.LeakyReLU()
        self.conv_out = nn.Conv1d(channels, out_channels, 7, padding=3, bias=final_bias)

    def forward(self, mel: Tensor) -> Tensor:
        """Turn log-mel ``[B, C, T, F]`` into samples ``[B, channels, N]``."""
        x = self.conv_in(mel.transpose(2, 3).flatten(1, 2))
        for level, upsampler in enumerate(self.upsamplers):
            x = upsampler(F.leaky_relu(x, self.slope))
            first = level * self.blocks_per_level
            blocks = self.resnets[first : first + self.blocks_per_level]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        wave = self.conv_out(self.act_out(x))
        if self.final_act_fn == "tanh":
            return torch.tanh(wave)
        return torch.clamp(wave, -1, 1) if self.final_act_fn == "clamp" else wave


def covers(config: dict[str, Any]) -> bool:
    """Whether this network computes what a config describes."""
    single = "bwe_upsample_factors" not in config
    return single and all(config.get(key, value) == value for key, value in _ONLY.items())
