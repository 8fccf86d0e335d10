"""Convolutions in time that carry their state from one chunk of a stream to the next.

A decoder that runs over a clip pads every convolution at the clip's beginning. Run over a chunk, it
needs there what came before instead. ``StatefulConv`` keeps the last input frames of each run and
puts them in the padding's place, so a causal decoder computes every frame once and exactly as over
the whole clip. Upsamplers drop their leading frames at the beginning of the stream alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.core.states import State


@dataclass
class DecoderWindow:
    """The latents that a decoder runs over; its modules share one and read it in every run.

    Attributes:
        latents: number of latents in the window.
        final: how many of them, from the first on, are not decoded again after this run.
        is_first: whether the window begins the stream, whose first latent makes one frame.
    """

    latents: int = 0
    final: int = 0
    is_first: bool = True

    def frames(self, latents: int, total: int) -> int:
        """Count the frames of the first ``latents`` latents among a layer's ``total`` frames."""
        # Layers run at different rates, so the rate follows from the total. The stream's first
        # latent makes one frame in every layer, whatever the rate.
        if latents in (0, self.latents):
            return total if latents else 0
        rate = (total - self.is_first) // (self.latents - self.is_first)
        return self.is_first + (latents - self.is_first) * rate


class StatefulConv(nn.Module):
    """Convolution over time (dimension 2) that remembers the end of its final input frames.

    Args:
        conv: convolution that pads nothing itself; its input comes padded in time, on the left if
            ``causal``, else on both sides.
        window: latents that the decoder runs over.
        causal: whether the padding is on the left alone.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, window: DecoderWindow, causal: bool) -> None:
        super().__init__()
        self.conv, self.window = conv, window
        self.padding = (conv.kernel_size[0] - 1) * int(conv.dilation[0])
        self.context = self.padding if causal else self.padding // 2
        self.past: Tensor | None = None

    def forward(self, padded: Tensor) -> Tensor:
        """Convolve ``[B, C, padding + T, ...]`` to ``[B, C', T, ...]``."""
        if self.context == 0:
            return convolve(self.conv, padded)
        # After the first chunk the left padding stands for frames that were seen: put them there.
        if self.past is not None:
            padded = torch.cat([self.past, padded[:, :, self.context :]], 2)
        # Frame t of the output reads the ``context`` frames before it, which lie from t on in the
        # padded input. So the state of the next window, whose first frame is ``end``, begins there.
        if self.window.final:
            end = self.window.frames(self.window.final, padded.shape[2] - self.padding)
            # A copy, for a view would keep the whole chunk in memory.
            self.past = padded[:, :, end : end + self.context].clone()
        return convolve(self.conv, padded)


def convolve(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Convolve ``x``; on a CPU by the kernel that is fastest for small inputs, too.

    With one thread torch takes a kernel for small volumes that unfolds them first, and takes up to
    three times as long (2.1 to 0.7 ms for 24 channels on 26x8x8, torch 2.13).
    """
    ours = x.device.type == "cpu" and x.dtype is torch.float32 and conv.padding_mode == "zeros"
    if not (ours and x.ndim == 5 and torch.backends.mkldnn.is_available()):
        return conv(x)
    assert not isinstance(conv.padding, str), "diffusers names paddings by numbers"
    return torch.mkldnn_convolution(
        x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups
    )


class StatefulVideoUpsampler(nn.Module):
    """``LTX2VideoUpsampler3d`` that drops its leading frames once and not in every chunk.

    Args:
        inner: the upsampler; the name is part of saved states.
        window: latents that the decoder runs over.
    """

    def __init__(self, inner: Any, window: DecoderWindow) -> None:
        super().__init__()
        self.inner, self.window = inner, window

    def _depth_to_space(self, x: Tensor) -> Tensor:
        """Unfold ``[B, C st sh sw, T, H, W]`` to ``[B, C, T st, H sh, W sw]``."""
        x = x.unflatten(1, (-1, *self.inner.stride))
        return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        """Upsample ``[B, C, T, H, W]``; the first window loses ``stride[0] - 1`` frames."""
        out = self._depth_to_space(self.inner.conv(x, causal=causal))
        if self.inner.residual:
            skip = self._depth_to_space(x)
            out = out + skip.repeat(1, out.shape[1] // skip.shape[1], 1, 1, 1)
        return out[:, :, self.inner.stride[0] - 1 if self.window.is_first else 0 :]


class StatefulAudioUpsampler(nn.Module):
    """``LTX2AudioUpsample`` that drops its leading frame once and not in every chunk.

    Args:
        inner: the upsampler; the name is part of saved states.
        window: latents that the decoder runs over.
    """

    def __init__(self, inner: Any, window: DecoderWindow) -> None:
        super().__init__()
        self.inner, self.window = inner, window

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``[B, C, T, F]`` to ``[B, C, 2T, 2F]``; the first window loses one frame."""
        out = self.inner.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out[:, :, int(self.window.is_first) :]


def make_stateful(window: DecoderWindow, causal: bool, padding_conv: Any) -> nn.Module:
    """Give a padding convolution a ``StatefulConv`` inside; returns it."""
    padding_conv.conv = StatefulConv(padding_conv.conv, window, causal)
    return padding_conv


def copy_sharing_weights(root: nn.Module) -> Any:
    """Copy a module tree whose copy holds the same tensors: own state, no second set of weights."""
    # deepcopy takes what stands in its memo instead of copying it.
    shared = {id(tensor): tensor for tensor in chain(root.parameters(), root.buffers())}
    return copy.deepcopy(root, shared).eval()


def replace_modules(root: nn.Module, makers: dict[str, Callable[[Any], nn.Module]]) -> None:
    """Replace every descendant whose class has a maker by what the maker returns for it.

    Classes go by their names, which our networks and diffusers' share.
    """
    # A list first, for the tree changes while it is walked: what a maker wraps is visited too.
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in makers:
                setattr(parent, name, makers[type(child).__name__](child))


def conv_states(root: nn.Module) -> State:
    """Copy the state of every stateful convolution of a decoder, by the module's name."""
    states = {}
    for name, module in root.named_modules():
        if isinstance(module, StatefulConv) and module.past is not None:
            states[name] = module.past.clone()
    return states


def restore_conv_states(root: nn.Module, states: State) -> None:
    """Put the states that ``conv_states`` took into a fresh decoder."""
    for name, module in root.named_modules():
        if isinstance(module, StatefulConv) and name in states:
            module.past = in_conv_layout(states[name])


def in_conv_layout(saved: Tensor) -> Tensor:
    """Return a saved tensor in the memory layout that it had when it was computed."""
    # The layout decides which convolution kernel runs, and so the last bit of what follows.
    five = saved.ndim == 5
    layout = torch.channels_last_3d if five else torch.contiguous_format
    return saved.contiguous(memory_format=layout)
