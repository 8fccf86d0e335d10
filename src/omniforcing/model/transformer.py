"""Our forward over LTX-2's modules: one per-layer code path for teacher, critic and student.

The modules are diffusers' ``LTX2VideoTransformer3DModel`` with ``use_cross_timestep=False``, so every LTX-2.0 weight loads
by name; the architecture always comes from its config. What a query sees is the view's business (``attention.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from omniforcing.errors import OmniForcingError
from omniforcing.latents import Latents, Pair, TextFeatures
from omniforcing.model.attention import View, sdpa

KeyValue = tuple[Tensor, Tensor]
TextCache = list[Pair[KeyValue]]


@dataclass(frozen=True)
class _Stream:
    """One stream's modules of one layer, under one set of names."""

    site: str
    norm1: nn.Module
    attn1: nn.Module
    norm2: nn.Module
    attn2: nn.Module
    norm3: nn.Module
    ff: nn.Module
    table: Tensor
    cross_table: Tensor


def _streams(layer: nn.Module) -> Pair[_Stream]:
    def names(prefix: str) -> _Stream:
        part = {n: getattr(layer, prefix + n) for n in ("norm1", "attn1", "norm2", "attn2", "norm3", "ff")}
        cross = getattr(layer, f"{'audio' if prefix else 'video'}_a2v_cross_attn_scale_shift_table")
        return _Stream(
            site="audio" if prefix else "video", table=getattr(layer, prefix + "scale_shift_table"), cross_table=cross, **part
        )

    return Pair(names(""), names("audio_"))


@dataclass(frozen=True)
class _Condition:
    """adaLN inputs of one stream, one row per distinct sigma: ``main [B, G, 6D]``, cross ``[B, G, 4D]`` and ``[B, G, D]``."""

    main: Tensor
    cross: Tensor
    gate: Tensor
    head: Tensor
    owner: Tensor | None

    def rows(self, table: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        """``table [R, D]`` + embedding, as R tensors that broadcast over the stream's tokens."""
        values = table + embedding.unflatten(-1, (table.shape[0], -1))
        if self.owner is not None:
            values = values[:, self.owner]
        return values.unbind(2)


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _project(attention: nn.Module, queries: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q = attention.norm_q(attention.to_q(queries))
    return q, *_key_value(attention, context)


def _key_value(attention: nn.Module, context: Tensor) -> KeyValue:
    return attention.norm_k(attention.to_k(context)), attention.to_v(context)


def _output(attention: nn.Module, queries: Tensor, mixed: Tensor) -> Tensor:
    if attention.to_gate_logits is not None:
        gates = 2 * torch.sigmoid(attention.to_gate_logits(queries))
        mixed = (mixed.unflatten(-1, (attention.heads, -1)) * gates.unsqueeze(-1)).flatten(2)
    return attention.to_out[0](mixed)


class DualStream(nn.Module):
    """Video and audio streams joined in every layer, with learnable audio sinks in front when a view starts the stream.

    Args:
        core: diffusers' transformer, any LTX-2.0 configuration.
        sinks: number of sink tokens S in hidden space (paper section 3.3); 0 for bidirectional models.

    Raises:
        OmniForcingError: for an architecture this forward does not cover.
    """

    def __init__(self, core: LTX2VideoTransformer3DModel, sinks: int = 0) -> None:
        super().__init__()
        check_architecture(core)
        self.core = core
        width = core.audio_proj_in.out_features
        self.sinks = nn.Parameter(torch.randn(sinks, width, generator=torch.Generator().manual_seed(0)) * 0.02)

    def cache_text(self, text: TextFeatures) -> TextCache:
        """Keys and values of the prompt for every layer; with gradient, so that the text path learns in rollouts."""
        if self.core.config.use_prompt_embeddings:
            text = TextFeatures(self.core.caption_projection(text.video), self.core.audio_caption_projection(text.audio))
        return [
            _streams(layer).map(lambda part, features: _key_value(part.attn2, features), Pair(text.video, text.audio))
            for layer in self.core.transformer_blocks
        ]

    def forward(self, x: Latents, sigma: Tensor, text: TextCache, view: View) -> Latents:
        """Velocity of latents.

        Args:
            x: video ``[B, Tv, S, Cv]``, audio ``[B, Ta, Ca]``.
            sigma: ``[B]``, or ``[B, G]`` with one value per group that ``view.owner`` names.
            text: from ``cache_text``, batch B (or 1).
            view: which keys the queries see.
        """
        shapes = x.map(lambda t: t.shape)
        hidden = Pair(self.core.proj_in(x.video.flatten(1, 2)), self.core.audio_proj_in(x.audio))
        prepended = self.sinks.shape[0] if view.starts else 0
        if prepended:
            hidden = Pair(hidden.video, torch.cat([self.sinks.expand(hidden.audio.shape[0], -1, -1), hidden.audio], 1))
        condition = self._condition(sigma, view)
        for index, layer in enumerate(self.core.transformer_blocks):
            hidden = _layer(layer, index, hidden, condition, text[index], view)
        core = self.core
        video = _head(hidden.video, condition.video, core.norm_out, core.proj_out, core.scale_shift_table)
        audio = _head(hidden.audio, condition.audio, core.audio_norm_out, core.audio_proj_out, core.audio_scale_shift_table)
        return Pair(video.reshape(shapes.video), audio[:, prepended:])

    def _condition(self, sigma: Tensor, view: View) -> Pair[_Condition]:
        core, config = self.core, self.core.config
        sigma = sigma.reshape(sigma.shape[0], -1).float()
        steps = (sigma * config.timestep_scale_multiplier).flatten()
        gate_steps = (sigma * config.cross_attn_timestep_scale_multiplier).flatten()

        def embed(module: Callable[..., tuple[Tensor, Tensor]], at: Tensor) -> tuple[Tensor, Tensor]:
            rows, embedded = module(at, batch_size=sigma.shape[0], hidden_dtype=core.proj_in.weight.dtype)
            return rows.view(*sigma.shape, -1), embedded.view(*sigma.shape, -1)

        def stream(time: nn.Module, cross: nn.Module, gate: nn.Module, owner: Tensor | None) -> _Condition:
            main, head = embed(time, steps)
            spread = owner.to(sigma.device) if owner is not None and sigma.shape[1] > 1 else None
            return _Condition(main, embed(cross, steps)[0], embed(gate, gate_steps)[0], head, spread)

        return Pair(
            stream(core.time_embed, core.av_cross_attn_video_scale_shift, core.av_cross_attn_video_a2v_gate, view.owner.video),
            stream(
                core.audio_time_embed, core.av_cross_attn_audio_scale_shift, core.av_cross_attn_audio_v2a_gate, view.owner.audio
            ),
        )


def _layer(layer: nn.Module, index: int, x: Latents, condition: Pair[_Condition], text: Pair[KeyValue], view: View) -> Latents:
    """One transformer block: self, text, both cross-modal attentions from the same states, feed-forward."""
    parts = _streams(layer)
    rows = parts.map(lambda part, c: c.rows(part.table, c.main), condition)

    def own(part: _Stream, h: Tensor, row: tuple[Tensor, ...], kv: KeyValue) -> Tensor:
        shift, scale, gate = row[:3]
        queries = _modulate(part.norm1(h), scale, shift)
        mixed = view.attend(index, part.site, part.attn1.heads, *_project(part.attn1, queries, queries))
        h = h + _output(part.attn1, queries, mixed) * gate
        return h + _text_attention(part.attn2, part.norm2(h), kv)

    def feed(part: _Stream, h: Tensor, row: tuple[Tensor, ...]) -> Tensor:
        shift, scale, gate = row[3:6]
        return h + part.ff(_modulate(part.norm3(h), scale, shift)) * gate

    x = parts.map(own, x, rows, text)
    x = _cross(layer, index, x, condition, view)
    return parts.map(feed, x, rows)


def _text_attention(attention: nn.Module, queries: Tensor, kv: KeyValue) -> Tensor:
    q = attention.norm_q(attention.to_q(queries))
    k, v = (x.expand(q.shape[0], -1, -1) for x in kv)
    return _output(attention, queries, sdpa(q, k, v, attention.heads))


def _cross(layer: nn.Module, index: int, x: Latents, condition: Pair[_Condition], view: View) -> Latents:
    tables = Pair(layer.video_a2v_cross_attn_scale_shift_table, layer.audio_a2v_cross_attn_scale_shift_table)
    rows = tables.map(lambda table, c: c.rows(table[:4], c.cross), condition)
    gates = tables.map(lambda table, c: c.rows(table[4:], c.gate)[0], condition)
    normed = Pair(layer.audio_to_video_norm(x.video), layer.video_to_audio_norm(x.audio))
    for_a2v = normed.map(lambda h, row: _modulate(h, row[0], row[1]), rows)
    for_v2a = normed.map(lambda h, row: _modulate(h, row[2], row[3]), rows)

    def attend(attention: nn.Module, site: str, queries: Tensor, context: Tensor) -> Tensor:
        mixed = view.attend(index, site, attention.heads, *_project(attention, queries, context))
        return _output(attention, queries, mixed)

    return Pair(
        x.video + gates.video * attend(layer.audio_to_video_attn, "a2v", for_a2v.video, for_a2v.audio),
        x.audio + gates.audio * attend(layer.video_to_audio_attn, "v2a", for_v2a.audio, for_v2a.video),
    )


def _head(x: Tensor, condition: _Condition, norm: nn.Module, project: nn.Module, table: Tensor) -> Tensor:
    values = table + condition.head.unsqueeze(2)
    if condition.owner is not None:
        values = values[:, condition.owner]
    shift, scale = values.unbind(2)
    return project(_modulate(norm(x), scale, shift))


def check_architecture(core: LTX2VideoTransformer3DModel) -> None:
    """Refuse what this forward would compute wrongly.

    Raises:
        OmniForcingError: naming the config key.
    """
    config = core.config
    if config.num_attention_heads != config.audio_num_attention_heads:
        raise OmniForcingError(
            f"transformer config: num_attention_heads is {config.num_attention_heads} but audio_num_attention_heads is "
            f"{config.audio_num_attention_heads}; the cross-modal RoPE needs them equal"
        )
    for key in ("cross_attn_mod", "audio_cross_attn_mod"):
        if getattr(config, key, False):
            raise OmniForcingError(
                f"transformer config: {key}=true (LTX-2.3's prompt modulation) is not supported yet; use LTX-2.0 weights"
            )
