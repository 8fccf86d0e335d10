"""Conditioning on sigma and prompt: adaLN parameters, and the text's keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from omniforcing.core.latents import TextFeatures
from omniforcing.core.pair import Pair
from omniforcing.model.functions.few_passes import multiply_add
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

# One noise level for all tokens, one per sample, or one per group of tokens.
Sigma: TypeAlias = Tensor | float | tuple[float, ...]


class KeyValue(NamedTuple):
    """Keys and values of an attention, ``[..., N, C]`` each."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class AdaLNParams:
    """adaLN of one sub-layer: ``x * scale + shift`` on its input, ``gate`` on its output.

    Each is ``[B, G, D]`` with one value per distinct sigma, which broadcasts over all tokens if G
    is 1, or ``[B, N, D]`` with one per token.
    """

    scale: Tensor
    shift: Tensor
    gate: Tensor | None = None

    def modulate(self, x: Tensor) -> Tensor:
        """``x * scale + shift`` of normalised states ``[B, N, D]``."""
        return multiply_add(x, self.scale, self.shift)

    def tensors(self) -> Iterator[Tensor]:
        """Scale, shift and gate."""
        yield from (self.scale, self.shift)
        if self.gate is not None:
            yield self.gate

    def per_token(self, group_ids: Tensor) -> AdaLNParams:
        """One value per token, ``[B, N, D]``, for the group ``[N]`` of each token."""
        scale, shift = self.scale[:, group_ids], self.shift[:, group_ids]
        return AdaLNParams(scale, shift, None if self.gate is None else self.gate[:, group_ids])


@dataclass(frozen=True)
class StreamAdaLN:
    """adaLN parameters of one stream in one block.

    Attributes:
        self_attention: self-attention.
        feed_forward: feed-forward.
        a2v: the stream's side of the attention of video to audio; gated in the stream that asks.
        v2a: the stream's side of the attention of audio to video.
        text: queries of the text attention, where the release modulates them (LTX-2.3 on).
    """

    self_attention: AdaLNParams
    feed_forward: AdaLNParams
    a2v: AdaLNParams
    v2a: AdaLNParams
    text: AdaLNParams | None

    def tensors(self) -> Iterator[Tensor]:
        """Parameters of all sub-layers."""
        for params in (self.self_attention, self.feed_forward, self.a2v, self.v2a, self.text):
            if params is not None:
                yield from params.tensors()

    def per_token(self, group_ids: Tensor | None) -> StreamAdaLN:
        """One value per token of each; unchanged without groups."""
        if group_ids is None:
            return self
        return StreamAdaLN(
            self_attention=self.self_attention.per_token(group_ids),
            feed_forward=self.feed_forward.per_token(group_ids),
            a2v=self.a2v.per_token(group_ids),
            v2a=self.v2a.per_token(group_ids),
            text=None if self.text is None else self.text.per_token(group_ids),
        )


@dataclass(frozen=True)
class TimestepEmbedding:
    """Embedded sigmas of one stream, ``[B, G, R * D]`` for the R rows of each adaLN table.

    Attributes:
        main: for the stream's own sub-layers.
        cross: for scale and shift of the cross-modal attentions.
        gate: for the gate of the cross-modal attention.
        head: for the output head.
        prompt: for the prompt, where its modulation depends on sigma.
    """

    main: Tensor
    cross: Tensor
    gate: Tensor
    head: Tensor
    prompt: Tensor | None


@dataclass(frozen=True)
class Conditioning:
    """Everything that a forward needs besides latents and view.

    Attributes:
        blocks: per block the adaLN parameters, or the timestep embeddings to make them of.
        text: per block the prompt's keys and values, ``[B, L, C]``, or ``[B, G, L, C]`` where
            they depend on sigma and there are several.
        head: adaLN parameters of the output heads.
        groups: number G of distinct sigmas per sample.
    """

    blocks: Sequence[Pair[StreamAdaLN] | Pair[TimestepEmbedding]]
    text: list[Pair[KeyValue]]
    head: Pair[AdaLNParams]
    groups: int

    def tensors(self) -> Iterator[Tensor]:
        """All of them, in an order of their own; for prepared adaLN parameters alone."""
        for block in self.blocks:
            for stream in block:
                assert isinstance(stream, StreamAdaLN)
                yield from stream.tensors()
        for text in self.text:
            for key_value in text:
                yield from key_value
        for params in self.head:
            yield from params.tensors()


def prompt_follows_sigma(core: LTX2VideoTransformer3DModel) -> bool:
    """Whether text keys and values depend on sigma (LTX-2.3 and 2.5 as released)."""
    return core.prompt_modulation and core.config.use_prompt_adaln_single


def embed_timesteps(core: LTX2VideoTransformer3DModel, sigma: Tensor) -> Pair[TimestepEmbedding]:
    """Embed sigmas ``[B, G]`` by the model's timestep embedders, for both streams."""
    config = core.config
    steps = (sigma * config.timestep_scale_multiplier).flatten()
    gate_steps = (sigma * config.cross_attn_timestep_scale_multiplier).flatten()
    dtype = core.proj_in.weight.dtype

    def embed(module: Callable[..., tuple[Tensor, Tensor]], at: Tensor) -> tuple[Tensor, Tensor]:
        rows, embedded = module(at, batch_size=sigma.shape[0], hidden_dtype=dtype)
        return rows.view(*sigma.shape, -1), embedded.view(*sigma.shape, -1)

    def stream(
        time: nn.Module, cross: nn.Module, gate: nn.Module, prompt: str
    ) -> TimestepEmbedding:
        main, head = embed(time, steps)
        text = embed(getattr(core, prompt), steps)[0] if prompt_follows_sigma(core) else None
        return TimestepEmbedding(
            main, embed(cross, steps)[0], embed(gate, gate_steps)[0], head, text
        )

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
    """Add ``table [R, D]`` to the embedding ``[B, G, R * D]``; R tensors ``[B, G, D]``."""
    return (table + embedding.unflatten(-1, (table.shape[0], -1))).unbind(2)


def adaln_params(tables: tuple[Tensor, Tensor], embedding: TimestepEmbedding) -> StreamAdaLN:
    """Make a block's adaLN parameters of embedded timesteps, for one stream.

    Args:
        tables: ``[R, D]`` for the stream's own sub-layers, and ``[5, D]`` for cross-attentions.
        embedding: embedded timesteps of the stream.
    """
    main, cross = tables
    # The order of the rows is that of diffusers' block.
    shift, scale, gate, shift_ff, scale_ff, gate_ff, *text = _rows(main, embedding.main)
    a2v_scale, a2v_shift, v2a_scale, v2a_shift = _rows(cross[:4], embedding.cross)
    (cross_gate,) = _rows(cross[4:], embedding.gate)
    return StreamAdaLN(
        self_attention=AdaLNParams(1 + scale, shift, gate),
        feed_forward=AdaLNParams(1 + scale_ff, shift_ff, gate_ff),
        a2v=AdaLNParams(1 + a2v_scale, a2v_shift, cross_gate),
        v2a=AdaLNParams(1 + v2a_scale, v2a_shift, cross_gate),
        text=AdaLNParams(1 + text[1], text[0], text[2]) if text else None,
    )


def _head_params(table: Tensor, embedding: TimestepEmbedding) -> AdaLNParams:
    shift, scale = (table + embedding.head.unsqueeze(2)).unbind(2)
    return AdaLNParams(1 + scale, shift)


class ConditionedBlock(Protocol):
    """What a block makes of sigmas and prompts (``block.TransformerBlock``)."""

    def adaln_params(self, embedding: Pair[TimestepEmbedding]) -> Pair[StreamAdaLN]:
        """adaLN parameters of both streams for embedded timesteps."""
        ...

    def text_key_value(self, features: TextFeatures, prompt: Pair[Tensor | None]) -> Pair[KeyValue]:
        """Keys and values of a prompt in both streams."""
        ...


def project_text(core: LTX2VideoTransformer3DModel, features: TextFeatures) -> TextFeatures:
    """Bring text features ``[B, L, D]`` to precision and width of the blocks (LTX-2.0)."""
    features = features.map(lambda t: t.to(core.proj_in.weight.dtype))
    if not core.config.use_prompt_embeddings:
        return features
    video = core.caption_projection(features.video)
    return Pair(video, core.audio_caption_projection(features.audio))


class TextCache:
    """A prompt's keys and values in every block, and the conditioning of any sigma under it.

    In LTX-2.0 text keys and values depend on the prompt alone: they are made once, with gradient,
    so that the text path learns in rollouts. From LTX-2.3 on they depend on sigma too and are made
    for each sigma that is asked for. A stream knows its few sigmas and has everything made
    beforehand (``prepare``); its forwards then compute none of it.

    Args:
        core: the transformer.
        blocks: its blocks.
        features: text features of the prompts, ``[B, L, D]`` per stream, from ``project_text``.
    """

    def __init__(
        self,
        core: LTX2VideoTransformer3DModel,
        blocks: Sequence[ConditionedBlock],
        features: TextFeatures,
    ) -> None:
        self._core, self._blocks, self._features = core, blocks, features
        unmodulated: Pair[Tensor | None] = Pair(None, None)
        self._fixed = None if prompt_follows_sigma(core) else self._text(unmodulated)
        self._prepared: dict[tuple[float | tuple[float, ...], int], Conditioning] = {}

    def map(self, function: Callable[[Tensor], Tensor]) -> TextCache:
        """A twin with a function applied to all that was made with gradient, nothing prepared."""
        twin = copy.copy(self)
        twin._prepared = {}
        if self._fixed is None:
            twin._features = self._features.map(function)
        else:
            twin._fixed = [
                pair.map(lambda kv: KeyValue(function(kv.keys), function(kv.values)))
                for pair in self._fixed
            ]
        return twin

    @torch.no_grad()
    def prepare(self, sigmas: Iterable[float | tuple[float, ...]], batch: int) -> None:
        """Compute once what forwards of ``batch`` samples at these sigmas need; no gradient."""
        for sigma in sigmas:
            conditioning = self._conditioning(self._column(sigma, batch))
            params = []
            for block, embedding in zip(self._blocks, conditioning.blocks, strict=True):
                params.append(block.adaln_params(embedding))  # type: ignore[arg-type]
            self._prepared[sigma, batch] = replace(conditioning, blocks=params)

    def at(self, sigma: Sigma, batch: int) -> Conditioning:
        """Conditioning of a forward at a number, one per group, ``[B]`` or ``[B, G]``."""
        if isinstance(sigma, Tensor):
            return self._conditioning(sigma.reshape(sigma.shape[0], -1).float())
        return self.prepared(sigma, batch) or self._conditioning(self._column(sigma, batch))

    def prepared(self, sigma: Sigma, batch: int) -> Conditioning | None:
        """What ``prepare`` has made for a forward; None without it."""
        # It has no gradient, so training never takes it.
        if torch.is_grad_enabled() or isinstance(sigma, Tensor):
            return None
        return self._prepared.get((sigma, batch))

    def _column(self, sigma: float | tuple[float, ...], batch: int) -> Tensor:
        """Sigmas as ``[B, G]`` on the model's device."""
        values = sigma if isinstance(sigma, tuple) else (sigma,)
        device = self._core.proj_in.weight.device
        # Filled, not copied from the CPU: a copy would make a stream wait for the GPU.
        return torch.cat([torch.full((batch, 1), value, device=device) for value in values], 1)

    def _conditioning(self, sigma: Tensor) -> Conditioning:
        core, embedding = self._core, embed_timesteps(self._core, sigma)
        tables = Pair(core.scale_shift_table, core.audio_scale_shift_table)
        return Conditioning(
            # The blocks make their parameters themselves: a sharded one has its tables only
            # while it runs.
            blocks=[embedding] * len(self._blocks),
            text=self._fixed or self._text(embedding.map(lambda e: e.prompt)),
            head=tables.map(_head_params, embedding),
            groups=sigma.shape[1],
        )

    def _text(self, prompt: Pair[Tensor | None]) -> list[Pair[KeyValue]]:
        """Keys and values of every block; ``prompt``: embedded sigmas, where they modulate it."""
        return [block.text_key_value(self._features, prompt) for block in self._blocks]


def modulate_text(features: Tensor, table: Tensor, embedding: Tensor | None) -> Tensor:
    """Modulate text features ``[B, L, D]`` by a block's table ``[2, D]``.

    Args:
        features: the text features.
        table: shift and scale.
        embedding: embedded sigmas ``[B, G, 2 * D]``; None where they play no part.

    Returns:
        ``[B, L, D]`` without sigmas or for one of them, else ``[B, G, L, D]``.
    """
    if embedding is None:
        shift, scale = table.to(features.dtype)
        return features * (1 + scale) + shift
    shift, scale = _rows(table, embedding)
    if shift.shape[1] > 1:
        features, shift, scale = features.unsqueeze(1), shift.unsqueeze(2), scale.unsqueeze(2)
    return features * (1 + scale) + shift
