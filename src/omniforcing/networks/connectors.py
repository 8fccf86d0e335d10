"""LTX-2's text connectors: hidden states of all of Gemma's layers to features of each stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from omniforcing.networks.layers import (
    Attention,
    FeedForward,
    Rotation,
    random_parameter,
    rope_frequencies,
    rotation_table,
)
from omniforcing.networks.network import Network, records_config

_EPS = 1e-6
_SCALE = 8  # of the normalised hidden states, where both streams share a projection


class ConnectorBlock(nn.Module):
    """Self-attention and feed-forward.

    Args:
        heads: number of heads.
        dim_head: channels of a head.
        rope_type: RoPE convention.
        gated: whether a gate per head scales the attention's output.
    """

    def __init__(self, heads: int, dim_head: int, rope_type: str, gated: bool) -> None:
        super().__init__()
        dim = heads * dim_head
        self.norm1 = nn.RMSNorm(dim, eps=_EPS, elementwise_affine=False)
        self.attn1 = Attention(dim, heads, dim_head, rope_type=rope_type, gated=gated)
        self.norm2 = nn.RMSNorm(dim, eps=_EPS, elementwise_affine=False)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, mask: Tensor, rotation: Rotation) -> Tensor:
        x = x + self.attn1(self.norm1(x), mask, rotation)
        return x + self.ff(self.norm2(x))


class Connector(nn.Module):
    """A transformer over the prompt's tokens, whose padding becomes learned registers.

    Args:
        heads: number of heads.
        dim_head: channels of a head.
        layers: number of blocks.
        registers: number of registers; None leaves the padding, masked.
        length: number of tokens that counts as 1 in RoPE.
        theta: highest frequency of RoPE.
        double: whether its frequencies are computed in float64.
        rope_type: RoPE convention.
        gated: whether gates scale the attentions' outputs.
    """

    def __init__(
        self,
        heads: int,
        dim_head: int,
        layers: int,
        registers: int | None,
        length: int,
        theta: float,
        double: bool,
        rope_type: str,
        gated: bool,
    ) -> None:
        super().__init__()
        self.heads, self.dim, self.rope_type = heads, heads * dim_head, rope_type
        self.length, self.theta, self.double_precision = length, theta, double
        self.learnable_registers: nn.Parameter | None = None
        if registers is not None:
            self.learnable_registers = random_parameter(
                lambda shape: torch.rand(shape) * 2.0 - 1.0, registers, self.dim
            )
        self.transformer_blocks = nn.ModuleList(
            ConnectorBlock(heads, dim_head, rope_type, gated) for _ in range(layers)
        )
        self.norm_out = nn.RMSNorm(self.dim, eps=_EPS, elementwise_affine=False)

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Connect tokens.

        Args:
            x: ``[B, L, D]``.
            present: whether each is a token of the prompt, ``[B, L]``.

        Returns:
            Features ``[B, L, D]``, and which of them mean something, ``[B, L]``.

        Raises:
            ValueError: if the registers do not divide the length.
        """
        if self.learnable_registers is not None:
            x = self._filled(x, present, self.learnable_registers)
            present = torch.ones_like(present)
        mask = (present.to(x.dtype) - 1)[:, None, None] * torch.finfo(x.dtype).max
        rotation = self._rotation(x)
        for block in self.transformer_blocks:
            x = block(x, mask, rotation)
        return self.norm_out(x), present

    def _filled(self, x: Tensor, present: Tensor, registers: Tensor) -> Tensor:
        """Move the tokens to the front, in order, and put registers behind them."""
        length = x.shape[1]
        if length % len(registers):
            raise ValueError(f"{len(registers)} registers do not divide {length} tokens")
        order = torch.argsort(1 - present, dim=1, stable=True)
        front = torch.gather(x, 1, order.unsqueeze(-1).expand_as(x))
        places = torch.arange(length, device=x.device).unsqueeze(0)
        is_token = (places < present.sum(1, keepdim=True)).unsqueeze(-1)
        repeated = registers.repeat(length // len(registers), 1).to(x.dtype)
        return torch.where(is_token, front, repeated)

    def _rotation(self, x: Tensor) -> Rotation:
        places = torch.arange(x.shape[1], dtype=torch.float32, device=x.device) / self.length
        places = places.unsqueeze(0).repeat(len(x), 1)
        frequencies = rope_frequencies(self.theta, self.dim // 2, self.double_precision, x.device)
        angles = (places.unsqueeze(-1) * 2 - 1) * frequencies
        return rotation_table(angles, self.dim, self.rope_type, self.heads)


class LTX2TextConnectors(Network):
    """The connectors of both streams; arguments and weights have diffusers' names."""

    @records_config
    def __init__(
        self,
        caption_channels: int = 3840,
        text_proj_in_factor: int = 49,
        video_connector_num_attention_heads: int = 30,
        video_connector_attention_head_dim: int = 128,
        video_connector_num_layers: int = 2,
        video_connector_num_learnable_registers: int | None = 128,
        video_gated_attn: bool = False,
        audio_connector_num_attention_heads: int = 30,
        audio_connector_attention_head_dim: int = 128,
        audio_connector_num_layers: int = 2,
        audio_connector_num_learnable_registers: int | None = 128,
        audio_gated_attn: bool = False,
        connector_rope_base_seq_len: int = 4096,
        rope_theta: float = 10000.0,
        rope_double_precision: bool = True,
        causal_temporal_positioning: bool = False,
        rope_type: str = "interleaved",
        per_modality_projections: bool = False,
        video_hidden_dim: int = 4096,
        audio_hidden_dim: int = 2048,
        proj_bias: bool = False,
    ) -> None:
        super().__init__()
        packed = caption_channels * text_proj_in_factor
        if per_modality_projections:
            self.video_text_proj_in = nn.Linear(packed, video_hidden_dim, bias=proj_bias)
            self.audio_text_proj_in = nn.Linear(packed, audio_hidden_dim, bias=proj_bias)
        else:
            self.text_proj_in = nn.Linear(packed, caption_channels, bias=proj_bias)
        rope = (connector_rope_base_seq_len, rope_theta, rope_double_precision, rope_type)
        self.video_connector = Connector(
            video_connector_num_attention_heads,
            video_connector_attention_head_dim,
            video_connector_num_layers,
            video_connector_num_learnable_registers,
            *rope,
            video_gated_attn,
        )
        self.audio_connector = Connector(
            audio_connector_num_attention_heads,
            audio_connector_attention_head_dim,
            audio_connector_num_layers,
            audio_connector_num_learnable_registers,
            *rope,
            audio_gated_attn,
        )

    def forward(
        self, states: Tensor, attention_mask: Tensor, padding_side: str = "left"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Connect prompts.

        Args:
            states: hidden states ``[B, L, D * layers]``, those of a channel together.
            attention_mask: 1 for tokens of the prompt, 0 for padding, ``[B, L]``.
            padding_side: ``left``, where LTX-2's tokenizer pads.

        Returns:
            Features of video and of audio ``[B, L, D]``, and which of video's mean something.
        """
        if padding_side != "left":
            raise ValueError(f"padding_side is {padding_side}, not left")
        states = states.unflatten(2, (self.config.caption_channels, -1))
        video, audio = self._projected(states, attention_mask)
        video, present = self.video_connector(video, attention_mask)
        audio, _ = self.audio_connector(audio, attention_mask)
        return video * present.unsqueeze(-1), audio, present

    def _projected(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise hidden states ``[B, L, D, layers]`` and project them, per stream."""
        if not self.config.per_modality_projections:
            both = self.text_proj_in(_normalised_per_layer(states, mask))
            return both, both
        variance = torch.mean(states**2, dim=2, keepdim=True)
        normal = (states * torch.rsqrt(variance + _EPS)).flatten(2, 3)
        normal = torch.where(mask.bool().unsqueeze(-1), normal, torch.zeros_like(normal))
        channels = self.config.caption_channels
        video = normal * math.sqrt(self.config.video_hidden_dim / channels)
        audio = normal * math.sqrt(self.config.audio_hidden_dim / channels)
        return self.video_text_proj_in(video), self.audio_text_proj_in(audio)


def _normalised_per_layer(states: Tensor, mask: Tensor) -> Tensor:
    """Bring every prompt's and layer's hidden states to mean 0 and a range of 8, packed."""
    present = mask.bool()[:, :, None, None]
    count = (mask.sum(-1) * states.shape[2]).view(-1, 1, 1, 1)
    mean = states.masked_fill(~present, 0.0).sum((1, 2), keepdim=True) / (count + _EPS)
    least = states.masked_fill(~present, float("inf")).amin((1, 2), keepdim=True)
    most = states.masked_fill(~present, float("-inf")).amax((1, 2), keepdim=True)
    normal = (states - mean) / (most - least + _EPS) * _SCALE
    return normal.masked_fill(~present, 0.0).flatten(2).to(states.dtype)
