"""Layers of LTX-2's transformer and of its text connectors: attention, feed-forward, embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]
_APPROXIMATIONS = {"gelu": "none", "gelu-approximate": "tanh"}
_TIMESTEP_CHANNELS = 256


def rotate_interleaved(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate neighbouring channels ``[B, N, C]`` by cosines and sines of the same shape."""
    cos, sin = rotation
    first, second = x.unflatten(2, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], -1).flatten(2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def rotate_split(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the two halves of every head's channels against each other.

    Args:
        x: ``[B, N, C]``.
        rotation: cosines and sines ``[B, heads, N, C / heads / 2]``.
    """
    cos, sin = (table.unsqueeze(-2) for table in rotation)
    heads = x.reshape(*x.shape[:2], rotation[0].shape[1], -1).transpose(1, 2)
    halves = heads.unflatten(-1, (2, -1)).float()
    turned = halves * cos
    turned[..., :1, :].addcmul_(-sin, halves[..., 1:, :])
    turned[..., 1:, :].addcmul_(sin, halves[..., :1, :])
    return turned.flatten(-2).transpose(1, 2).flatten(2).to(x.dtype)


def rotation_table(angles: Tensor, dim: int, rope_type: str, heads: int) -> Rotation:
    """Cosines and sines of angles ``[B, N, A]`` in the layout of a RoPE convention.

    The channels in front that the angles do not cover are not rotated.

    Args:
        angles: angles of each token.
        dim: channels of all heads.
        rope_type: ``interleaved`` or ``split``.
        heads: number of heads, which a split table is cut into.
    """
    cos, sin = angles.cos(), angles.sin()
    if rope_type == "interleaved":
        cos, sin = (table.repeat_interleave(2, -1) for table in (cos, sin))
    free = (dim if rope_type == "interleaved" else dim // 2) - cos.shape[-1]
    if free:
        cos = torch.cat([torch.ones_like(cos[..., :free]), cos], -1)
        sin = torch.cat([torch.zeros_like(sin[..., :free]), sin], -1)
    if rope_type == "interleaved":
        return cos, sin
    cos, sin = (table.unflatten(2, (heads, -1)).transpose(1, 2) for table in (cos, sin))
    return cos, sin


def rope_frequencies(
    theta: float, count: int, double: bool, device: torch.device | None = None
) -> Tensor:
    """``count`` frequencies from 1 to ``theta``, evenly spaced in their logarithm, times pi / 2."""
    dtype = torch.float64 if double else torch.float32
    powers = torch.pow(theta, torch.linspace(0.0, 1.0, count, dtype=dtype, device=device))
    return (powers * torch.pi / 2.0).to(torch.float32)


def random_parameter(draw: Callable[..., Tensor], *shape: int) -> nn.Parameter:
    """Draw a parameter; on the meta device, which has no numbers, torch would load its compiler."""
    empty = torch.empty(shape)
    return nn.Parameter(empty if empty.is_meta else draw(shape))


class RMSNorm(nn.Module):
    """Divide by the root mean square of the channels, computed in float32.

    Args:
        dim: number of channels.
        eps: added to the mean square.
        elementwise_affine: whether it has weights.
    """

    def __init__(self, dim: int, eps: float, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        normal = x * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return normal.to(x.dtype)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            normal = normal.to(self.weight.dtype)
        return normal * self.weight


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys.

    Args:
        query_dim: channels of the queries' hidden states, and of the output.
        heads: number of heads.
        dim_head: channels of a head.
        cross_attention_dim: channels of the keys' hidden states; None for ``query_dim``.
        bias: whether the projections of queries, keys and values have a bias.
        out_bias: whether the output projection has one.
        rope_type: RoPE convention.
        gated: whether a gate per head scales the output.
    """

    def __init__(
        self,
        query_dim: int,
        heads: int,
        dim_head: int,
        cross_attention_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        rope_type: str = "interleaved",
        gated: bool = False,
    ) -> None:
        super().__init__()
        inner, keys = heads * dim_head, cross_attention_dim or query_dim
        self.heads, self.rope_type = heads, rope_type
        self.norm_q: Any = nn.RMSNorm(inner, eps=1e-6)
        self.norm_k: Any = nn.RMSNorm(inner, eps=1e-6)
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k = nn.Linear(keys, inner, bias=bias)
        self.to_v = nn.Linear(keys, inner, bias=bias)
        self.to_out: Any = nn.ModuleList(
            [nn.Linear(inner, query_dim, bias=out_bias), nn.Dropout(0.0)]
        )
        self.to_gate_logits = nn.Linear(query_dim, heads) if gated else None

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation) -> Tensor:
        """Self-attention.

        Args:
            x: hidden states ``[B, N, D]``.
            mask: added to the scores, ``[B, 1, 1, N]``; None where every token sees every other.
            rotation: table of the tokens.
        """
        gates = None if self.to_gate_logits is None else self.to_gate_logits(x)
        rotate = rotate_interleaved if self.rope_type == "interleaved" else rotate_split
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(x)), self.to_v(x)
        q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if mask is not None:
            mask = mask.expand(-1, self.heads, -1, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        if gates is not None:
            mixed = mixed * (2.0 * torch.sigmoid(gates)).unsqueeze(-1)
        return self.to_out[1](self.to_out[0](mixed.flatten(2)))


class GELU(nn.Module):
    """A linear layer and its GELU.

    Args:
        dim_in: channels that go in.
        dim_out: channels that come out.
        approximate: ``none`` or ``tanh``.
        bias: whether the layer has a bias.
    """

    def __init__(self, dim_in: int, dim_out: int, approximate: str, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out, bias=bias)
        self.approximate = approximate

    def gelu(self, x: Tensor) -> Tensor:
        """The activation alone."""
        return F.gelu(x, approximate=self.approximate)

    def forward(self, x: Tensor) -> Tensor:
        return self.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside.

    Args:
        dim: channels.
        activation_fn: ``gelu`` or ``gelu-approximate``.
        bias: whether the layers have a bias.

    Raises:
        ValueError: for another activation.
    """

    def __init__(
        self, dim: int, activation_fn: str = "gelu-approximate", bias: bool = True
    ) -> None:
        super().__init__()
        if activation_fn not in _APPROXIMATIONS:
            raise ValueError(
                f"activation_fn is {activation_fn}, not {' or '.join(_APPROXIMATIONS)}"
            )
        first = GELU(dim, 4 * dim, _APPROXIMATIONS[activation_fn], bias)
        second = nn.Linear(4 * dim, dim, bias=bias)
        self.net: Any = nn.ModuleList([first, nn.Dropout(0.0), second])

    def forward(self, x: Tensor) -> Tensor:
        for module in self.net:
            x = module(x)
        return x


class TwoLinears(nn.Module):
    """Two linear layers with an activation between them, for timesteps and captions.

    Args:
        dim_in: channels that go in.
        dim_out: channels inside, and that come out.
        activation: between the layers.
        name: name of the activation, which has no weights.
    """

    def __init__(self, dim_in: int, dim_out: int, activation: nn.Module, name: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim_out)
        self.add_module(name, activation)
        self.linear_2 = nn.Linear(dim_out, dim_out)
        self._activation = name

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.get_submodule(self._activation)(self.linear_1(x)))


class TimestepEmbedder(nn.Module):
    """Sinusoids of a timestep, through two linear layers.

    Args:
        dim: channels of the embedding.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TwoLinears(_TIMESTEP_CHANNELS, dim, nn.SiLU(), "act")

    def forward(self, timestep: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Embed timesteps ``[N]`` to ``[N, D]``."""
        half = _TIMESTEP_CHANNELS // 2
        steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(-math.log(10000) * steps / half)
        angles = timestep[:, None].float() * frequencies[None, :]
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], -1)
        return self.timestep_embedder(waves.to(dtype))


class AdaLayerNormSingle(nn.Module):
    """Rows of adaLN parameters from a timestep.

    Args:
        dim: channels of a row.
        rows: number of rows.
    """

    def __init__(self, dim: int, rows: int) -> None:
        super().__init__()
        self.emb = TimestepEmbedder(dim)
        self.silu = nn.SiLU()
        self.linear = nn.Linear(dim, rows * dim)

    def forward(
        self,
        timestep: Tensor,
        batch_size: int | None = None,
        hidden_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed timesteps ``[N]``; returns ``[N, rows * D]`` and the embedding ``[N, D]``."""
        embedded = self.emb(timestep, hidden_dtype)
        return self.linear(self.silu(embedded)), embedded
