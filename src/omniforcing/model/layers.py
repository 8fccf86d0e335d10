"""One transformer block of LTX-2 as our forward runs it, its modules under one set of names for both streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniforcing.core.latents import Latents, Pair
from omniforcing.model.attention import View, sdpa
from omniforcing.model.conditioning import (
    Embedded,
    KeyValue,
    Modulation,
    Row,
    modulated,
    modulation,
)
from omniforcing.model.stabiliser import gate_heads, normalise_heads


class Bounds(NamedTuple):
    """What a stabiliser adds to an attention, ``[heads]`` each: a gain per normalised head, a gate per head."""

    qk_gain: Tensor | None = None
    tanh_gate: Tensor | None = None


NONE = Bounds()


class Attention:
    """One of diffusers' attention modules, taken apart where a view decides what queries see."""

    def __init__(self, module: nn.Module, bounds: Bounds = NONE) -> None:
        self.module, self.heads, self.bounds = module, module.heads, bounds
        self.asks: Callable[[Tensor], Tensor] = module.to_q
        self.out: Callable[[Tensor], Tensor] = module.to_out[0]

    def query(self, x: Tensor) -> Tensor:
        """Un-rotated queries ``[B, N, C]``."""
        return self.module.norm_q(self.asks(x))

    def key_value(self, x: Tensor) -> KeyValue:
        """Un-rotated keys, and values, ``[..., N, C]``."""
        return self.module.norm_k(self.module.to_k(x)), self.module.to_v(x)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the same states."""
        q, (k, v) = self.query(x), self.key_value(x)
        if self.bounds.qk_gain is not None:
            q, k = (
                normalise_heads(q, self.heads, self.bounds.qk_gain),
                normalise_heads(k, self.heads),
            )
        return q, k, v

    def output(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What the attention adds, from the queries' states and what was mixed for them, ``[B, N, heads * D]``."""
        if self.module.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(self.module.to_gate_logits(x))
            mixed = (mixed.unflatten(-1, (self.heads, -1)) * gates.unsqueeze(-1)).flatten(2)
        if self.bounds.tanh_gate is not None:
            mixed = gate_heads(mixed, self.bounds.tanh_gate)
        return self.out(mixed)


@dataclass(frozen=True)
class Stream:
    """One stream's part of a block; ``tables()`` are its adaLN rows and those of the cross-modal attentions.

    Tables are looked up when they are used: a sharded block has them whole only while it runs. ``cross`` is the site and the
    attention in which the stream asks the other one.
    """

    site: str
    norms: tuple[nn.Module, nn.Module, nn.Module]
    own: Attention
    text: Attention
    cross: tuple[str, Attention]
    ff: Callable[[Tensor], Tensor]
    tables: Callable[[], tuple[Tensor, Tensor]]
    prompt_table: Callable[[], Tensor] | None


class Layer:
    """A block of diffusers' transformer: self, text, both cross-modal attentions from the same states, feed-forward.

    Args:
        block: diffusers' module.
        index: its place, by which a view knows it.
        bounds: what a stabiliser adds to the audio's self-attention.
        recompute: whether a forward with gradient keeps its inputs alone and computes the rest again in the backward.
    """

    def __init__(
        self, block: nn.Module, index: int, bounds: Bounds = NONE, recompute: bool = False
    ) -> None:
        self.index, self.recompute = index, recompute
        # How a block runs what uses its weights; one that is sharded gathers them around it.
        self.within: Callable[..., Any] = getattr(block, "within", _directly)
        self.cross_norms = Pair(block.audio_to_video_norm, block.video_to_audio_norm)
        self.parts = Pair(
            self._stream(block, "video", "", NONE), self._stream(block, "audio", "audio_", bounds)
        )

    def _stream(self, block: nn.Module, site: str, prefix: str, bounds: Bounds) -> Stream:
        def named(name: str) -> Any:
            return getattr(block, prefix + name)

        return Stream(
            site=site,
            norms=(named("norm1"), named("norm2"), named("norm3")),
            own=self.attention(named("attn1"), bounds),
            text=self.attention(named("attn2"), kind="text"),
            cross=("v2a", self.attention(block.video_to_audio_attn, kind="cross"))
            if prefix
            else ("a2v", self.attention(block.audio_to_video_attn, kind="cross")),
            ff=self.feed_forward(named("ff")),
            tables=lambda: (
                named("scale_shift_table"),
                getattr(block, f"{site}_a2v_cross_attn_scale_shift_table"),
            ),
            prompt_table=(lambda: named("prompt_scale_shift_table"))
            if block.cross_attn_adaln
            else None,
        )

    def rows(self, at: Pair[Embedded]) -> Pair[Modulation]:
        """Modulation of both streams for embedded sigmas."""
        return self.parts.map(lambda part, e: modulation(part.tables(), e), at)

    def text(self, features: Latents, prompt: Pair[Tensor | None]) -> Pair[KeyValue]:
        """Keys and values of the prompt, ``[B, L, D]`` per stream; ``prompt``: embedded sigmas, where they follow sigma."""
        return self.within(self._text, features, prompt)

    def _text(self, features: Latents, prompt: Pair[Tensor | None]) -> Pair[KeyValue]:
        def key_value(part: Stream, x: Tensor, e: Tensor | None) -> KeyValue:
            return part.text.key_value(
                x if part.prompt_table is None else modulated(x, part.prompt_table(), e)
            )

        return self.parts.map(key_value, features, prompt)

    def __call__(
        self,
        x: Latents,
        at: Pair[Embedded] | Pair[Modulation],
        owner: Pair[Tensor | None],
        text: Pair[KeyValue],
        view: View,
        runs: Pair[list[int] | None],
    ) -> Latents:
        """Hidden states after the block.

        Args:
            x: hidden states ``[B, N, D]``.
            at: embedded sigmas, or the modulation that the block makes of them.
            owner: group of each token, where there are several.
            text: keys and values of the prompt, ``[B, L, C]`` or ``[B, G, L, C]``.
            view: which keys the queries see.
            runs: tokens of each of G groups, in order, where the text differs between them.
        """
        run: Callable[..., Latents] = self._run
        if self.recompute and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        return self.within(run, x, at, owner, text, self.seen(view), runs)

    def _run(
        self,
        x: Latents,
        at: Pair[Embedded] | Pair[Modulation],
        owner: Pair[Tensor | None],
        text: Pair[KeyValue],
        view: View,
        runs: Pair[list[int] | None],
    ) -> Latents:
        made: Any = at if isinstance(at.video, Modulation) else self.rows(at)  # type: ignore[arg-type]
        rows = made.map(lambda row, o: row.spread(o), owner)
        x = self.both(
            lambda part, h, row, kv, run: self._attend(part, h, row, kv, run, view),
            x,
            rows,
            text,
            runs,
        )
        x = self._cross(x, rows, view)
        return self.both(self._feed, x, rows)

    def seen(self, view: View) -> View:
        """A view as this block attends through it."""
        return view

    def both(self, function: Callable[..., Tensor], *pairs: Pair[Any]) -> Latents:
        """``function`` of either stream's part of the block and of what ``pairs`` hold of the stream."""
        return self.parts.map(function, *pairs)

    def attention(self, module: nn.Module, bounds: Bounds = NONE, kind: str = "own") -> Attention:  # noqa: ARG002
        """One of the block's attentions, of kind ``own`` (self), ``cross`` (of the other stream) or ``text``."""
        return Attention(module, bounds)

    def feed_forward(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The block's feed-forward of one stream."""
        return module

    def normalise(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Hidden states under one of the block's norms."""
        return norm(x)

    def modulate(self, row: Row, x: Tensor) -> Tensor:
        """adaLN of normalised states."""
        return row(x)

    def leave(self, h: Tensor, out: Tensor, gate: Tensor | None) -> Tensor:
        """Hidden states with what a sub-layer adds to them; ``h`` is not used again."""
        return h + out if gate is None else h + out * gate

    def _attend(
        self,
        part: Stream,
        h: Tensor,
        rows: Modulation,
        kv: KeyValue,
        runs: list[int] | None,
        view: View,
    ) -> Tensor:
        x = self.modulate(rows.own, self.normalise(part.norms[0], h))
        mixed = view.attend(self.index, part.site, part.own.heads, *part.own.project(x))
        h = self.leave(h, part.own.output(x, mixed), rows.own.gate)
        x = self.normalise(part.norms[1], h)
        x = x if rows.text is None else self.modulate(rows.text, x)
        return self.leave(h, text_attention(part.text, x, kv, runs), rows.text and rows.text.gate)

    def _cross(self, x: Latents, rows: Pair[Modulation], view: View) -> Latents:
        normed = self.cross_norms.map(self.normalise, x)
        for_a2v = normed.map(lambda h, row: self.modulate(row.a2v, h), rows)
        for_v2a = normed.map(lambda h, row: self.modulate(row.v2a, h), rows)

        def attend(part: Stream, h: Tensor, queries: Tensor, context: Tensor, row: Row) -> Tensor:
            site, attention = part.cross
            mixed = view.attend(
                self.index,
                site,
                attention.heads,
                attention.query(queries),
                *attention.key_value(context),
            )
            return self.leave(h, attention.output(queries, mixed), row.gate)

        queries, contexts = Pair(for_a2v.video, for_v2a.audio), Pair(for_a2v.audio, for_v2a.video)
        return self.both(attend, x, queries, contexts, Pair(rows.video.a2v, rows.audio.v2a))

    def _feed(self, part: Stream, h: Tensor, rows: Modulation) -> Tensor:
        return self.leave(
            h, part.ff(self.modulate(rows.feed, self.normalise(part.norms[2], h))), rows.feed.gate
        )


def _directly(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def text_attention(attention: Attention, x: Tensor, kv: KeyValue, runs: list[int] | None) -> Tensor:
    """Attention of states ``x [B, N, D]`` to the prompt; with ``runs``, group g of the tokens to text g of ``[B, G, L, C]``."""
    q = attention.query(x)
    if runs is None:
        k, v = (t.expand(q.shape[0], -1, -1) for t in kv)
        return attention.output(x, sdpa(q, k, v, attention.heads))
    pieces = zip(
        q.split(runs, 1), *(t.expand(q.shape[0], -1, -1, -1).unbind(1) for t in kv), strict=True
    )
    return attention.output(x, torch.cat([sdpa(a, k, v, attention.heads) for a, k, v in pieces], 1))
