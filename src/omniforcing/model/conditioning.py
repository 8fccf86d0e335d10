"""What a sigma and a prompt give every layer before any latents are seen: adaLN rows, and the text's keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from omniforcing.core.latents import Pair, TextFeatures

KeyValue = tuple[Tensor, Tensor]
# One noise level for all, one per sample, or one per group of tokens.
Sigma: TypeAlias = Tensor | float | tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """adaLN of one sub-layer: ``x * scale + shift`` goes in, and what comes out is multiplied by ``gate``.

    One value per distinct sigma, ``[B, G, D]``, which broadcasts over all tokens if G is 1, or one per token.
    """

    scale: Tensor
    shift: Tensor
    gate: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def spread(self, owner: Tensor) -> Row:
        """One value per token: ``[B, N, D]`` for the group of each of N tokens."""
        return Row(
            self.scale[:, owner],
            self.shift[:, owner],
            None if self.gate is None else self.gate[:, owner],
        )


@dataclass(frozen=True)
class Modulation:
    """The rows of one stream in one layer.

    Attributes:
        own: self-attention.
        feed: feed-forward.
        a2v: the stream's part in the attention of video to audio; it has a gate in the stream that asks.
        v2a: the same in the attention of audio to video.
        text: queries of the text attention, where they are modulated (LTX-2.3 on).
    """

    own: Row
    feed: Row
    a2v: Row
    v2a: Row
    text: Row | None

    def spread(self, owner: Tensor | None) -> Modulation:
        """One value per token of each row; as it is without an owner."""
        if owner is None:
            return self
        own, feed, a2v, v2a = (
            row.spread(owner) for row in (self.own, self.feed, self.a2v, self.v2a)
        )
        return Modulation(
            own, feed, a2v, v2a, None if self.text is None else self.text.spread(owner)
        )


@dataclass(frozen=True)
class Conditions:
    """All that a forward needs beside latents and view: per layer the rows (or, as they stand, the embedded sigmas that it
    makes them of) and the text, and the rows of the heads.

    Text keys and values are ``[B, L, C]``, or ``[B, G, L, C]`` where they depend on sigma and there are several.
    """

    layers: Sequence[Pair[Modulation] | Pair[Embedded]]
    text: list[Pair[KeyValue]]
    head: Pair[Row]
    groups: int


@dataclass(frozen=True)
class Embedded:
    """What the time embeddings of one stream make of sigmas, ``[B, G, rows * D]``; ``prompt`` where text is modulated."""

    main: Tensor
    cross: Tensor
    gate: Tensor
    head: Tensor
    prompt: Tensor | None


def prompt_follows_sigma(core: LTX2VideoTransformer3DModel) -> bool:
    """Whether text keys and values depend on sigma (LTX-2.3 and 2.5 as released)."""
    return core.prompt_modulation and core.config.use_prompt_adaln_single


def _embed(core: LTX2VideoTransformer3DModel, sigma: Tensor) -> Pair[Embedded]:
    config = core.config
    steps = (sigma * config.timestep_scale_multiplier).flatten()
    gate_steps = (sigma * config.cross_attn_timestep_scale_multiplier).flatten()

    def embed(module: Callable[..., tuple[Tensor, Tensor]], at: Tensor) -> tuple[Tensor, Tensor]:
        rows, embedded = module(
            at, batch_size=sigma.shape[0], hidden_dtype=core.proj_in.weight.dtype
        )
        return rows.view(*sigma.shape, -1), embedded.view(*sigma.shape, -1)

    def stream(time: nn.Module, cross: nn.Module, gate: nn.Module, prompt: str) -> Embedded:
        main, head = embed(time, steps)
        text = embed(getattr(core, prompt), steps)[0] if prompt_follows_sigma(core) else None
        return Embedded(main, embed(cross, steps)[0], embed(gate, gate_steps)[0], head, text)

    return Pair(
        stream(
            core.time_embed,
            core.av_cross_attn_video_scale_shift,
            core.av_cross_attn_video_a2v_gate,
            "prompt_adaln",
        ),
        stream(
            core.audio_time_embed,
            core.av_cross_attn_audio_scale_shift,
            core.av_cross_attn_audio_v2a_gate,
            "audio_prompt_adaln",
        ),
    )


def _rows(table: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
    """``table [R, D]`` + embedding ``[B, G, R * D]``, as R tensors ``[B, G, D]``."""
    return (table + embedding.unflatten(-1, (table.shape[0], -1))).unbind(2)


def modulation(tables: tuple[Tensor, Tensor], at: Embedded) -> Modulation:
    """What a layer's tables make of embedded sigmas for one stream."""
    main, cross = tables
    shift, scale, gate, shift_feed, scale_feed, gate_feed, *text = _rows(main, at.main)
    a2v_scale, a2v_shift, v2a_scale, v2a_shift = _rows(cross[:4], at.cross)
    (cross_gate,) = _rows(cross[4:], at.gate)
    return Modulation(
        own=Row(1 + scale, shift, gate),
        feed=Row(1 + scale_feed, shift_feed, gate_feed),
        a2v=Row(1 + a2v_scale, a2v_shift, cross_gate),
        v2a=Row(1 + v2a_scale, v2a_shift, cross_gate),
        text=Row(1 + text[1], text[0], text[2]) if text else None,
    )


def _head(table: Tensor, embedded: Tensor) -> Row:
    shift, scale = (table + embedded.unsqueeze(2)).unbind(2)
    return Row(1 + scale, shift)


class Conditioned(Protocol):
    """What a layer makes of sigmas and prompts (``layers.Layer``)."""

    def rows(self, at: Pair[Embedded]) -> Pair[Modulation]:
        """Modulation of both streams for embedded sigmas."""
        ...

    def text(self, features: TextFeatures, prompt: Pair[Tensor | None]) -> Pair[KeyValue]:
        """Keys and values of a prompt in both streams."""
        ...


class TextCache:
    """A prompt as the layers see it, and with it all else that a sigma decides.

    Text keys and values depend on the prompt alone in LTX-2.0 and are made at once, with gradient, so that the text path
    learns in rollouts. From LTX-2.3 on they depend on sigma too, and are made for each sigma that is asked for. A stream,
    whose few sigmas are known, has them all made beforehand (``prepare``), and then no forward computes any.

    Args:
        core: the transformer.
        layers: its layers.
        features: of the prompts, ``[B, L, D]`` per stream.
    """

    def __init__(
        self,
        core: LTX2VideoTransformer3DModel,
        layers: Sequence[Conditioned],
        features: TextFeatures,
    ) -> None:
        self._core, self._layers = core, layers
        features = features.map(lambda t: t.to(core.proj_in.weight.dtype))
        if core.config.use_prompt_embeddings:
            features = Pair(
                core.caption_projection(features.video),
                core.audio_caption_projection(features.audio),
            )
        self._features = features
        self._fixed = None if prompt_follows_sigma(core) else self._text(None)
        self._prepared: dict[tuple[float | tuple[float, ...], int], Conditions] = {}

    @torch.no_grad()
    def prepare(self, sigmas: Iterable[float | tuple[float, ...]], batch: int) -> None:
        """Compute once what forwards of ``batch`` samples at these sigmas will need; without gradient."""
        for sigma in sigmas:
            made = self._conditions(self._column(sigma, batch))
            rows = [layer.rows(at) for layer, at in zip(self._layers, made.layers, strict=True)]  # type: ignore[arg-type]
            self._prepared[sigma, batch] = replace(made, layers=rows)

    def at(self, sigma: Sigma, batch: int) -> Conditions:
        """Conditions of a forward at ``sigma``: a number or one per group, ``[B]``, or ``[B, G]``."""
        if not isinstance(sigma, Tensor):
            ready = None if torch.is_grad_enabled() else self._prepared.get((sigma, batch))
            return ready or self._conditions(self._column(sigma, batch))
        return self._conditions(sigma.reshape(sigma.shape[0], -1).float())

    def _column(self, sigma: float | tuple[float, ...], batch: int) -> Tensor:
        values, device = (
            sigma if isinstance(sigma, tuple) else (sigma,),
            self._core.proj_in.weight.device,
        )
        return torch.cat([torch.full((batch, 1), value, device=device) for value in values], 1)

    def _conditions(self, sigma: Tensor) -> Conditions:
        core, at = self._core, _embed(self._core, sigma)
        return Conditions(
            layers=[at] * len(self._layers),
            text=self._fixed or self._text(at.map(lambda e: e.prompt)),
            head=Pair(core.scale_shift_table, core.audio_scale_shift_table).map(
                lambda t, e: _head(t, e.head), at
            ),
            groups=sigma.shape[1],
        )

    def _text(self, prompt: Pair[Tensor | None] | None) -> list[Pair[KeyValue]]:
        """Keys and values of every layer; ``prompt`` are the embedded sigmas where they follow sigma."""
        return [layer.text(self._features, prompt or Pair(None, None)) for layer in self._layers]


def modulated(features: Tensor, table: Tensor, embedding: Tensor | None) -> Tensor:
    """Text features ``[B, L, D]`` under a layer's rows: ``[B, L, D]`` without sigmas or for one, else ``[B, G, L, D]``."""
    if embedding is None:
        shift, scale = table.to(features.dtype)
        return features * (1 + scale) + shift
    shift, scale = _rows(table, embedding)
    if shift.shape[1] > 1:
        features, shift, scale = features.unsqueeze(1), shift.unsqueeze(2), scale.unsqueeze(2)
    return features * (1 + scale) + shift
