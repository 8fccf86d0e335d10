"""One transformer block of LTX-2, built once per model over diffusers' module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniforcing.core.latents import Latents
from omniforcing.core.pair import Pair
from omniforcing.model.attention import View, sdpa
from omniforcing.model.conditioning import (
    AdaLNParams,
    KeyValue,
    StreamAdaLN,
    TimestepEmbedding,
    adaln_params,
    modulate_text,
)
from omniforcing.model.kernels import NO_STABILISER, Attention, Kernels, LayerView, StabiliserParams
from omniforcing.networks.layers import RMSNorm
from omniforcing.networks.transformer import LTX2VideoTransformerBlock

T = TypeVar("T")


@dataclass(frozen=True)
class StreamLayers:
    """One stream's sub-layers of a block.

    Attributes:
        module: diffusers' block. It holds the adaLN tables, which are looked up when they are
            used: a sharded block has them whole only while it runs.
        site: ``video`` or ``audio``, the site of the self-attention.
        norms: norms before self-attention, text attention and feed-forward.
        self_attention: attention of the stream to itself.
        text_attention: attention to the prompt.
        cross_site: ``a2v`` or ``v2a``, the site at which this stream asks the other one.
        cross_attention: attention to the other stream.
        feed_forward: feed-forward network.
    """

    module: LTX2VideoTransformerBlock
    site: str
    norms: tuple[RMSNorm, RMSNorm, RMSNorm]
    self_attention: Attention
    text_attention: Attention
    cross_site: str
    cross_attention: Attention
    feed_forward: Callable[[Tensor], Tensor]

    def tables(self) -> tuple[Tensor, Tensor]:
        """adaLN tables ``[R, D]`` of the stream's own sub-layers and of the cross-attentions."""
        own = "scale_shift_table" if self.site == "video" else "audio_scale_shift_table"
        cross = f"{self.site}_a2v_cross_attn_scale_shift_table"
        return getattr(self.module, own), getattr(self.module, cross)

    def prompt_table(self) -> Tensor | None:
        """adaLN table ``[2, D]`` of the prompt, where the release modulates it (LTX-2.3 on)."""
        if not self.module.cross_attn_adaln:
            return None
        prefix = "" if self.site == "video" else "audio_"
        return getattr(self.module, f"{prefix}prompt_scale_shift_table")


class BlockInputs(NamedTuple):
    """What one block takes besides hidden states and view.

    Attributes:
        conditioning: timestep embeddings per stream, or the adaLN parameters made of them.
        group_ids: for each token ``[N]`` the group whose sigma it has; None where all share one.
        group_sizes: tokens of each group, where each group has a text of its own; else None.
        text: keys and values of the prompt, ``[B, L, C]``, or ``[B, G, L, C]`` per group.
        stabiliser: parameters for the audio self-attention.
    """

    conditioning: Pair[TimestepEmbedding] | Pair[StreamAdaLN]
    group_ids: Pair[Tensor | None]
    group_sizes: Pair[list[int] | None]
    text: Pair[KeyValue]
    stabiliser: StabiliserParams


class TransformerBlock:
    """Self-attention, text attention, both cross-modal attentions, feed-forward, of both streams.

    Args:
        module: diffusers' block. Its weights stay where they are, so that files, optimisers and
            sharding see diffusers' names alone.
        index: number of the block, by which a view knows it.
        kernels: how the sub-layers compute.
        checkpoint_activations: keep the inputs alone in a forward with gradient, and compute the
            rest again in the backward.
    """

    def __init__(
        self,
        module: LTX2VideoTransformerBlock,
        index: int,
        kernels: Kernels,
        checkpoint_activations: bool = False,
    ) -> None:
        self.module, self.index, self.kernels = module, index, kernels
        self.checkpoint_activations = checkpoint_activations
        # Modules whose weights the block uses; an adapted model adds its adapter's.
        self.holders: list[nn.Module] = [module]
        self.cross_norms = Pair(module.audio_to_video_norm, module.video_to_audio_norm)
        self.streams = Pair(
            _stream_layers(module, "video", kernels), _stream_layers(module, "audio", kernels)
        )
        # Compiled as functions of the block: all blocks share what is compiled once, as long as
        # it sees nothing that tells them apart. That is why the layer's number is in the view.
        self._attend = kernels.compile(TransformerBlock._self_and_text)
        self._cross = kernels.compile(TransformerBlock._cross_modal)
        self._feed = kernels.compile(TransformerBlock._feed_forward)

    def adaln_params(self, embedding: Pair[TimestepEmbedding]) -> Pair[StreamAdaLN]:
        """adaLN parameters of both streams for embedded timesteps."""
        return self.streams.map(lambda layers, e: adaln_params(layers.tables(), e), embedding)

    def text_key_value(self, features: Latents, prompt: Pair[Tensor | None]) -> Pair[KeyValue]:
        """Keys and values of the prompt for both streams.

        Args:
            features: text features ``[B, L, D]`` per stream.
            prompt: embedded timesteps of the prompt, where its modulation depends on sigma.
        """
        return self._gathered(self._checkpointed(self._text_key_value), features, prompt)

    def __call__(self, x: Latents, inputs: BlockInputs, view: View) -> Latents:
        """Hidden states after the block.

        Args:
            x: hidden states ``[B, N, D]``.
            inputs: conditioning, prompt and groups.
            view: which keys the queries see.
        """
        return self._gathered(self._checkpointed(self._run), x, inputs, view)

    def _checkpointed(self, function: Callable[..., T]) -> Callable[..., T]:
        """The function, computed again in the backward pass where that is asked for."""
        if not (self.checkpoint_activations and torch.is_grad_enabled()):
            return function
        # Restoring the generators costs time, and few models draw anything.
        keep = self.kernels.draws
        return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=keep)

    def _gathered(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function that uses the weights; a sharded block gathers them around it."""
        for holder in self.holders:
            run = getattr(holder, "run_gathered", None)
            function = function if run is None else partial(run, function)
        return function(*arguments)

    def _text_key_value(self, features: Latents, prompt: Pair[Tensor | None]) -> Pair[KeyValue]:
        def key_value(layers: StreamLayers, x: Tensor, embedding: Tensor | None) -> KeyValue:
            table = layers.prompt_table()
            if table is not None:
                x = modulate_text(x, table, embedding)
            return layers.text_attention.key_value(x)

        return self.streams.map(key_value, features, prompt)

    def _run(self, x: Latents, inputs: BlockInputs, view: View) -> Latents:
        kernels, seen = self.kernels, self.kernels.bind(view, self.index)
        made: Any = inputs.conditioning
        if isinstance(made.video, TimestepEmbedding):
            made = self.adaln_params(made)
        params = made.map(lambda stream, ids: stream.per_token(ids), inputs.group_ids)
        # A stabiliser acts on audio alone.
        stabilisers = Pair(NO_STABILISER, inputs.stabiliser)

        # The two streams meet only in the cross-modal attentions; before and after them either
        # may run beside the other.
        attend, feed = partial(self._attend, self, seen), partial(self._feed, self)
        sizes = inputs.group_sizes
        x = kernels.per_stream(attend, self.streams, x, params, inputs.text, sizes, stabilisers)
        x = self._cross(self, x, params, seen)
        return kernels.per_stream(feed, self.streams, x, params)

    def _self_and_text(
        self,
        view: LayerView,
        layers: StreamLayers,
        h: Tensor,
        params: StreamAdaLN,
        text: KeyValue,
        group_sizes: list[int] | None,
        stabiliser: StabiliserParams,
    ) -> Tensor:
        """Self-attention and text attention of one stream, ``[B, N, D]``."""
        kernels, attention = self.kernels, layers.self_attention
        x = kernels.modulate(params.self_attention, kernels.normalise(layers.norms[0], h))
        # Un-rotated: the view knows the tokens' places in time, and what it keeps of the keys
        # is rotated again for every later block.
        q, k, v = attention.project(x, stabiliser)
        mixed = view.attend(layers.site, attention.heads, q, k, v)
        out = attention.output(x, mixed, stabiliser)
        h = kernels.residual_add(h, out, params.self_attention.gate)

        x = kernels.normalise(layers.norms[1], h)
        gate = None
        if params.text is not None:
            x = kernels.modulate(params.text, x)
            gate = params.text.gate
        out = attend_text(layers.text_attention, x, text, group_sizes)
        return kernels.residual_add(h, out, gate)

    def _cross_modal(self, x: Latents, params: Pair[StreamAdaLN], view: LayerView) -> Latents:
        """Both cross-modal attentions, from the same hidden states ``[B, N, D]`` of the streams."""
        kernels = self.kernels
        normed = self.cross_norms.map(kernels.normalise, x)
        # Both attentions read the states from before either: what they need of them is made here,
        # because the residual add may write into ``x``.
        for_a2v = normed.map(lambda h, stream: kernels.modulate(stream.a2v, h), params)
        for_v2a = normed.map(lambda h, stream: kernels.modulate(stream.v2a, h), params)
        # Per stream: what it asks with, whom it asks, and its gate.
        queries = Pair(for_a2v.video, for_v2a.audio)
        contexts = Pair(for_a2v.audio, for_v2a.video)
        asking = Pair(params.video.a2v, params.audio.v2a)

        def attend(
            layers: StreamLayers, h: Tensor, query: Tensor, context: Tensor, row: AdaLNParams
        ) -> Tensor:
            attention = layers.cross_attention
            q = attention.query(query)
            k, v = attention.key_value(context)
            mixed = view.attend(layers.cross_site, attention.heads, q, k, v)
            return kernels.residual_add(h, attention.output(query, mixed), row.gate)

        return kernels.per_stream(attend, self.streams, x, queries, contexts, asking)

    def _feed_forward(self, layers: StreamLayers, h: Tensor, params: StreamAdaLN) -> Tensor:
        """Feed-forward of one stream, ``[B, N, D]``."""
        kernels = self.kernels
        x = kernels.modulate(params.feed_forward, kernels.normalise(layers.norms[2], h))
        return kernels.residual_add(h, layers.feed_forward(x), params.feed_forward.gate)


def _stream_layers(module: LTX2VideoTransformerBlock, site: str, kernels: Kernels) -> StreamLayers:
    """Collect one stream's sub-layers of diffusers' block under names that both streams share."""
    prefix = "" if site == "video" else "audio_"

    def named(name: str) -> Any:
        return getattr(module, prefix + name)

    video = site == "video"
    cross = module.audio_to_video_attn if video else module.video_to_audio_attn
    return StreamLayers(
        module=module,
        site=site,
        norms=(named("norm1"), named("norm2"), named("norm3")),
        self_attention=kernels.self_attention(named("attn1")),
        text_attention=kernels.text_attention(named("attn2")),
        cross_site="a2v" if video else "v2a",
        cross_attention=kernels.cross_attention(cross),
        feed_forward=kernels.feed_forward(named("ff")),
    )


def attend_text(
    attention: Attention, x: Tensor, text: KeyValue, group_sizes: list[int] | None
) -> Tensor:
    """Attention of hidden states to the prompt.

    Args:
        attention: the text attention.
        x: hidden states ``[B, N, D]``.
        text: keys and values ``[B, L, C]``; with groups ``[B, G, L, C]``.
        group_sizes: tokens of each of G groups, in order; group g sees text g.
    """
    q = attention.query(x)
    if group_sizes is None:
        k, v = (t.expand(q.shape[0], -1, -1) for t in text)
        return attention.output(x, sdpa(q, k, v, attention.heads))
    keys, values = (t.expand(q.shape[0], -1, -1, -1).unbind(1) for t in text)
    mixed = []
    for query, k, v in zip(q.split(group_sizes, 1), keys, values, strict=True):
        mixed.append(sdpa(query, k, v, attention.heads))
    return attention.output(x, torch.cat(mixed, 1))
