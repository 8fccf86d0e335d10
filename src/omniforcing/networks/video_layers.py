"""Layers of LTX-2's video VAE: convolutions, resnet blocks, samplers, and their levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.networks.autoencoder import ChannelNorm
from omniforcing.networks.network import Recomputes

# Factors in time, height and width of a level that halves or doubles the picture.
STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
NORM_EPS = 1e-8


class LTX2VideoCausalConv3d(nn.Module):
    """3-D convolution that pads time by repeating the first frame, or the first and the last.

    Args:
        in_channels: channels that go in.
        out_channels: channels that come out.
        stride: stride along each axis.
        spatial_padding_mode: how the picture is padded.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, int, int] = (1, 1, 1),
        spatial_padding_mode: Any = "zeros",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            3,
            stride,
            padding=(0, 1, 1),
            padding_mode=spatial_padding_mode,
        )

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        """Convolve ``[B, C, T, H, W]``; the left alone is padded if ``causal``."""
        first, last = x[:, :, :1], x[:, :, -1:]
        padded = [first.repeat(1, 1, 2, 1, 1), x] if causal else [first, x, last]
        return self.conv(torch.cat(padded, 2))


class ResnetBlock(nn.Module):
    """Two convolutions with norms and activations in front, added to their input.

    Args:
        in_channels: channels that go in.
        out_channels: channels that come out.
        eps: of the norm in front of the shortcut.
        padding: how the picture is padded.
    """

    def __init__(self, in_channels: int, out_channels: int, eps: float, padding: str) -> None:
        super().__init__()
        self.nonlinearity = nn.SiLU()
        self.norm1 = ChannelNorm(NORM_EPS)
        self.conv1 = LTX2VideoCausalConv3d(in_channels, out_channels, spatial_padding_mode=padding)
        self.norm2 = ChannelNorm(NORM_EPS)
        self.conv2 = LTX2VideoCausalConv3d(out_channels, out_channels, spatial_padding_mode=padding)
        self.norm3: nn.Module | None = None
        self.conv_shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.norm3 = nn.LayerNorm(in_channels, eps=eps)
            self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(x)), causal)
        h = self.conv2(self.nonlinearity(self.norm2(h)), causal)
        if self.norm3 is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x.movedim(1, -1)).movedim(-1, 1))
        return h + x


class LTX2VideoDownsampler3d(nn.Module):
    """Fold time and picture into channels: a convolution, and the mean of the folded input.

    Args:
        in_channels: channels that go in.
        out_channels: channels that come out.
        stride: factors along each axis.
        padding: how the picture is padded.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: tuple[int, int, int], padding: str
    ) -> None:
        super().__init__()
        self.stride = stride
        folded = stride[0] * stride[1] * stride[2]
        self.group_size = in_channels * folded // out_channels
        self.conv = LTX2VideoCausalConv3d(
            in_channels, out_channels // folded, spatial_padding_mode=padding
        )

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        # The first frame stands alone: it is repeated to fill a group of its own.
        x = torch.cat([x[:, :, : self.stride[0] - 1], x], 2)
        skip = self._folded(x).unflatten(1, (-1, self.group_size)).mean(2)
        return self._folded(self.conv(x, causal)) + skip

    def _folded(self, x: Tensor) -> Tensor:
        """Fold ``[B, C, T st, H sh, W sw]`` to ``[B, C st sh sw, T, H, W]``."""
        time, height, width = self.stride
        x = x.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, time))
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


class LTX2VideoUpsampler3d(nn.Module):
    """Unfold channels into time and picture, after a convolution.

    Args:
        in_channels: channels that go in.
        stride: factors along each axis.
        residual: whether the unfolded input is added.
        upscale_factor: by what the channels become fewer.
        padding: how the picture is padded.
    """

    def __init__(
        self,
        in_channels: int,
        stride: tuple[int, int, int],
        residual: bool,
        upscale_factor: int,
        padding: str,
    ) -> None:
        super().__init__()
        self.stride, self.residual, self.upscale_factor = stride, residual, upscale_factor
        out_channels = in_channels * stride[0] * stride[1] * stride[2] // upscale_factor
        self.conv = LTX2VideoCausalConv3d(in_channels, out_channels, spatial_padding_mode=padding)

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        out = self._unfolded(self.conv(x, causal))
        if self.residual:
            skip = self._unfolded(x)
            return out + skip.repeat(1, out.shape[1] // skip.shape[1], 1, 1, 1)
        return out

    def _unfolded(self, x: Tensor) -> Tensor:
        """Unfold ``[B, C st sh sw, T, H, W]``; the first frame fills no group of its own."""
        x = x.unflatten(1, (-1, *self.stride)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, self.stride[0] - 1 :]


class Level(Recomputes):
    """Resnet blocks at one resolution, and what leads to them or away.

    Args:
        channels: channels of the blocks.
        layers: number of blocks.
        eps: of the norms in front of shortcuts.
        padding: how the picture is padded.
    """

    def __init__(self, channels: int, layers: int, eps: float, padding: str) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, eps, padding) for _ in range(layers)
        )

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        for resnet in self.resnets:
            x = self.run(resnet, x, causal)
        return x


class DownLevel(Level):
    """Resnet blocks, and a downsampler after them.

    Args:
        channels: channels of the blocks.
        out_channels: channels that come out.
        layers: number of blocks.
        kind: kind of downsampler; None for none.
        eps: of the norms in front of shortcuts.
        padding: how the picture is padded.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        layers: int,
        kind: str | None,
        eps: float,
        padding: str,
    ) -> None:
        super().__init__(channels, layers, eps, padding)
        self.downsamplers: nn.ModuleList | None = None
        if kind is not None:
            down = (
                LTX2VideoCausalConv3d(channels, channels, (2, 2, 2), padding)
                if kind == "conv"
                else LTX2VideoDownsampler3d(channels, out_channels, STRIDES[kind], padding)
            )
            self.downsamplers = nn.ModuleList([down])

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        x = super().forward(x, causal)
        for downsampler in self.downsamplers or ():
            x = downsampler(x, causal)
        return x


class UpLevel(Recomputes):
    """An upsampler, and resnet blocks after it.

    Args:
        in_channels: channels that go in.
        channels: channels of the blocks.
        layers: number of blocks.
        upsampler: makes the upsampler; None for none.
        eps: of the norms in front of shortcuts.
        padding: how the picture is padded.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        layers: int,
        upsampler: tuple[str, bool, int] | None,
        eps: float,
        padding: str,
    ) -> None:
        super().__init__()
        self.conv_in: nn.Module | None = None
        if in_channels != channels:
            self.conv_in = ResnetBlock(in_channels, channels, eps, padding)
        self.upsamplers: nn.ModuleList | None = None
        if upsampler is not None:
            kind, residual, factor = upsampler
            up = LTX2VideoUpsampler3d(channels * factor, STRIDES[kind], residual, factor, padding)
            self.upsamplers = nn.ModuleList([up])
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, eps, padding) for _ in range(layers)
        )

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        if self.conv_in is not None:
            x = self.conv_in(x, causal)
        for upsampler in self.upsamplers or ():
            x = upsampler(x, causal)
        for resnet in self.resnets:
            x = self.run(resnet, x, causal)
        return x
