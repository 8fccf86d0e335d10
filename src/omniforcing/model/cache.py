"""K/V caches of the causal student: functional in training, static ring buffers in streaming.

Both keep keys un-rotated and rotate them once per block to their places below the horizon
(``BlockTable.position``), so that an endless stream meets no distance, no phase against a sink
and no rounding that training has not shown.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from omniforcing.core.layout import BlockTable, Span, join_spans
from omniforcing.core.pair import Pair
from omniforcing.core.states import State
from omniforcing.model.attention import SITES, Positions, View, sdpa, split_heads
from omniforcing.model.conditioning import KeyValue

STREAMS = ("video", "audio")


class CacheKey(NamedTuple):
    """One attention of the model: number of the transformer block, and site."""

    layer: int
    site: str


# Blocks side by side in a buffer, and the RoPE rows of the places they are seen at.
_Turned = tuple[Span, tuple[Tensor, ...]]
# Keys and values of a block, or of all that a block sees, by attention.
_Written = dict[CacheKey, KeyValue]


class Cache(Protocol):
    """History of a rollout.

    ``view`` opens a block; the refresh forward through ``view(index, write=True)`` leaves the
    block's keys and values behind.
    """

    def view(self, index: int, write: bool = False) -> View: ...


@dataclass(frozen=True)
class _Places:
    """Places in time of blocks as the present block sees them, for either cache.

    Attributes:
        positions: RoPE tables.
        table: the block table.
        window: past blocks that are visible besides the prefix.
        horizon: index of the last block that has a place of its own.
    """

    positions: Positions
    table: BlockTable
    window: int
    horizon: int

    def span(self, index: int, stream: str) -> Span:
        """Tokens of a block, sinks included."""
        video, audio = self.table.block(index).tokens(self.positions.spatial, self.positions.sinks)
        return video if stream == "video" else audio

    def present(self, index: int) -> int:
        """The block whose place block ``index`` takes while it is the present one."""
        return self.table.position(index, self.horizon)

    def past(self, index: int) -> tuple[int, ...]:
        """Blocks that block ``index`` sees, without itself."""
        return self.table.visible(index, self.window)[:-1]

    def seen_at(self, index: int, past: int) -> int:
        """The block whose place a past block takes as block ``index`` sees it."""
        return self.table.seen_at(index, past, self.horizon)


class FunctionalCache:
    """History as tensors per block: nothing is overwritten, so autograd and checkpointing work.

    History is detached: a block's loss reaches the weights through its own forward alone
    (Self-Forcing, paper section 3.4).
    """

    def __init__(self, positions: Positions, table: BlockTable, window: int, horizon: int) -> None:
        self.places = _Places(positions, table, window, horizon)
        self.blocks: dict[int, _Written] = {}
        # Index of the block that is open, and its history's rotated keys, which its denoising
        # steps share; None once the rollout has ended.
        self._open: tuple[int, dict[CacheKey, Tensor]] | None = (0, {})

    def view(self, index: int, write: bool = False) -> View:
        """View of block ``index``; with ``write`` a forward leaves keys and values behind."""
        past = self.places.past(index)
        for stale in self.blocks.keys() - {*past, index}:
            del self.blocks[stale]
        record = self.blocks.setdefault(index, {}) if write else None
        return FunctionalView(self, index, {b: self.blocks[b] for b in past}, record)

    def close(self) -> None:
        """End the rollout: a backward pass asks once for every layer, so rotated keys go at once.

        Those of all layers at a time would take half as much memory as the history itself.
        """
        self._open = None

    def rotated(self, index: int, past: dict[int, _Written], key: CacheKey) -> Tensor:
        """Keys of one attention in the ``past`` of block ``index``, rotated as it sees them."""
        if self._open is not None and self._open[0] != index:
            self._open = (index, {})
        held = {} if self._open is None else self._open[1]
        if key not in held:
            site, keys = SITES[key.site], []
            for block, written in past.items():
                place = self.places.span(self.places.seen_at(index, block), site.keys)
                k = written[key].keys
                keys.append(self.places.positions.rotate(k, site.axes, site.keys, place))
            held[key] = torch.cat(keys, 1)
        return held[key]


class FunctionalView:
    """One block against a functional cache, for as long as the block's graph lives.

    It holds keys and values of all that the block sees as they were written: layers that are
    computed again in the backward pass see the history as it was then.
    """

    graph_key: Hashable = None

    def __init__(
        self,
        cache: FunctionalCache,
        index: int,
        past: dict[int, _Written],
        record: _Written | None,
    ) -> None:
        self.cache, self.index, self.past, self.record = cache, index, past, record
        self.places = cache.places
        self.starts = self.takes_sinks = index == 0
        self.place = self.places.present(index)
        self.group_ids: Pair[Tensor | None] = Pair(None, None)

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key, (queries, keys, axes) = CacheKey(layer, site), SITES[site]
        if self.record is not None:
            self.record[key] = KeyValue(k.detach(), v.detach())
        rotate, span = self.places.positions.rotate, self.places.span
        q = rotate(q, axes, queries, span(self.place, queries))
        k = rotate(k, axes, keys, span(self.place, keys))
        if self.past:
            k = torch.cat([self.cache.rotated(self.index, self.past, key), k], 1)
            v = torch.cat([*(written[key].values for written in self.past.values()), v], 1)
        return sdpa(q, k, v, heads)


class RingCache:
    """Static buffers: prefix and sinks pinned in front, then a ring of past and present blocks.

    The ring holds ``window`` past blocks and the present one, rounded up to whole cycles of the
    table. A step writes the present block's keys and values into their slot and attends to the
    buffer as it lies; nothing is copied or allocated per step. Without gradient only.
    """

    def __init__(self, positions: Positions, table: BlockTable, window: int, horizon: int) -> None:
        self.places = _Places(positions, table, window, horizon)
        self.slots = table.ring(window)
        self.buffers: dict[CacheKey, _Buffer] = {}
        # The block for which the history was last rotated.
        self._rotated_for = 0
        # What attentions of views touch; few kinds of views come again and again.
        self.parts: dict[Hashable, dict[CacheKey, _Part]] = {}

    def slot(self, index: int, stream: str) -> Span:
        """Where a block's tokens lie in the buffers."""
        return self.places.span(self.places.table.slot(index, self.slots).index, stream)

    def view(self, index: int, write: bool = False) -> View:
        """View of block ``index``; with ``write`` a forward leaves un-rotated keys behind."""
        # Up to the horizon every block keeps the place at which it was written. Past it the
        # history moves back by one block for each new one: it is rotated anew, once per block.
        if index > self.places.horizon and self._rotated_for != index:
            self.rotate_history(index)
            self._rotated_for = index
        return RingView(self, index, write)

    def buffer(self, key: CacheKey, heads: int, like: Tensor) -> _Buffer:
        """The buffers of one attention, made when it first writes keys ``like [B, N, C]``."""
        if key not in self.buffers:
            batch, _, width = like.shape
            capacity = self.places.span(self.slots, SITES[key.site].keys).stop
            shape = (batch, heads, capacity, width // heads)
            raw = like.new_zeros(batch, capacity, width)
            self.buffers[key] = _Buffer(raw, like.new_zeros(shape), like.new_zeros(shape))
        return self.buffers[key]

    def visible(self, index: int, stream: str) -> list[Span]:
        """Spans of the buffer that block ``index`` sees; one, unless slots between are stale."""
        blocks = self.places.table.visible(index, self.places.window)
        spans = sorted((self.slot(block, stream) for block in blocks), key=lambda s: s.start)
        return [span for (span,) in join_spans((span,) for span in spans)]

    def merged_view(self, index: int) -> View:
        """View of block ``index - 1`` in its refresh and block ``index`` in its first step.

        At every attention the refresh comes first, with the history rotated as block
        ``index - 1`` sees it; then the history is rotated for block ``index``.
        """
        view = _MergedView(self, index)
        self._rotated_for = index
        return view

    def state(self) -> State:
        """A copy of everything the cache holds, for ``restore``."""
        held: State = {}
        for (layer, site), buffer in self.buffers.items():
            for part, tensor in zip(_STATE_PARTS, buffer, strict=True):
                held[f"{layer}.{site}.{part}"] = tensor.clone()
        return {**held, "turned_for": torch.tensor(self._rotated_for)}

    def restore(self, state: State) -> None:
        """Take over the ``state`` of a cache of the same model and table."""
        self._rotated_for = int(state["turned_for"])
        for name in {name.rpartition(".")[0] for name in state if name != "turned_for"}:
            layer, site = name.split(".")
            saved = _Buffer(*(state[f"{name}.{part}"].clone() for part in _STATE_PARTS))
            # Copied into place: recorded CUDA graphs read and write the buffers where they lie.
            buffer = self.buffers.setdefault(CacheKey(int(layer), site), saved)
            for place, value in zip(buffer, saved, strict=True):
                place.copy_(value)

    def rotate_history(self, index: int) -> None:
        """Rotate the whole history as block ``index`` past the horizon sees it."""
        history = {site: self.history(index, site) for site in SITES}
        for key in self.buffers:
            self.rotate(key, history[key.site])

    def rotate(self, key: CacheKey, history: list[_Turned]) -> None:
        """Rotate the ``history`` of one attention."""
        buffer = self.buffers[key]
        for at, rows in history:
            # From the un-rotated keys each time: rotating the rotated ones would add up rounding.
            raw, keys = buffer.raw[:, at.slice], buffer.keys[:, :, at.slice]
            self.places.positions.turn_into(keys, raw, rows)

    def history(self, index: int, site: str) -> list[_Turned]:
        """Past blocks of block ``index`` in the buffers, neighbours joined, and their RoPE rows."""
        places, (_, keys, axes) = self.places, SITES[site]
        device = next(iter(self.buffers.values())).raw.device
        # The prefix, first of the past blocks, keeps its place for ever.
        past = {self.slot(block, keys): block for block in places.past(index)[1:]}
        joined: list[_Turned] = []
        for at in sorted(past, key=lambda span: span.start):
            place = places.span(places.seen_at(index, past[at]), keys)
            rows = places.positions.rows(axes, keys, place, device)
            if joined and joined[-1][0].stop == at.start:
                before, earlier = joined.pop()
                at = Span(before.start, at.stop)
                rows = tuple(torch.cat(pair, -2) for pair in zip(earlier, rows, strict=True))
            joined.append((at, rows))
        return joined


# Names of the buffers in a saved state; files of streams have them.
_STATE_PARTS = ("raw", "turned", "values")


class _Buffer(NamedTuple):
    """Buffers of one attention.

    Attributes:
        raw: un-rotated keys ``[B, capacity, C]``.
        keys: rotated keys ``[B, heads, capacity, head_dim]``.
        values: values, of the same shape.
    """

    raw: Tensor
    keys: Tensor
    values: Tensor


class _Part(NamedTuple):
    """What one attention of a view touches: slices of its buffers, and RoPE rows.

    Attributes:
        raw: un-rotated keys of the block, ``[B, N, C]``.
        keys: rotated keys of the block, ``[B, heads, N, head_dim]``.
        values: values of the block, of the same shape.
        seen_keys: keys that the block sees, ``[B, heads, n, head_dim]`` per span.
        seen_values: their values.
        query_rows: RoPE rows of the queries.
        key_rows: RoPE rows of the block's keys.
    """

    raw: Tensor
    keys: Tensor
    values: Tensor
    seen_keys: list[Tensor]
    seen_values: list[Tensor]
    query_rows: tuple[Tensor, ...]
    key_rows: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        own = [self.raw, self.keys, self.values]
        return [*own, *self.seen_keys, *self.seen_values, *self.query_rows, *self.key_rows]


class RingView:
    """One block against a ring cache."""

    def __init__(self, cache: RingCache, index: int, write: bool) -> None:
        self.cache, self.index, self.write = cache, index, write
        self.starts = self.takes_sinks = index == 0
        self.group_ids: Pair[Tensor | None] = Pair(None, None)
        place = cache.places.present(index)
        self._place = {stream: cache.places.span(place, stream) for stream in STREAMS}
        self._slot = {stream: cache.slot(index, stream).slice for stream in STREAMS}
        self._seen = {stream: cache.visible(index, stream) for stream in STREAMS}
        # Rotation, slot and visible spans decide which memory a forward touches.
        memory = (place, cache.slot(index, "video"), *self._seen["video"])
        self.graph_key: Hashable = (*memory, write)
        # Gaps are closed by a copy, whose size is that of the spans.
        gaps = tuple(tuple(spans) for spans in self._seen.values() if len(spans) > 1)
        counts = tuple(len(span) for span in self._place.values())
        self.structure: Hashable = (self.starts, write, counts, gaps)
        self._parts = cache.parts.setdefault(memory, {})

    def tensors(self) -> list[Tensor]:
        """Slices of buffers and RoPE rows that a forward touches; the buffers are sorted."""
        parts = [self._part(key, self.cache.buffers[key]) for key in sorted(self.cache.buffers)]
        return [tensor for part in parts for tensor in part.tensors()]

    def _part(self, key: CacheKey, buffer: _Buffer) -> _Part:
        if key not in self._parts:
            (queries, keys, axes), rows = SITES[key.site], self.cache.places.positions.rows
            at, seen, device = self._slot[keys], self._seen[keys], buffer.raw.device
            self._parts[key] = _Part(
                raw=buffer.raw[:, at],
                keys=buffer.keys[:, :, at],
                values=buffer.values[:, :, at],
                seen_keys=[buffer.keys[:, :, span.slice] for span in seen],
                seen_values=[buffer.values[:, :, span.slice] for span in seen],
                query_rows=rows(axes, queries, self._place[queries], device),
                key_rows=rows(axes, keys, self._place[keys], device),
            )
        return self._parts[key]

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key, positions = CacheKey(layer, site), self.cache.places.positions
        part = self._part(key, self.cache.buffer(key, heads, k))
        positions.turn_into(part.keys, k, part.key_rows)
        part.values[...] = split_heads(v, heads)
        if self.write:
            part.raw[...] = k
        q = split_heads(positions.turn(q, part.query_rows), heads)
        keys, values = _joined(part.seen_keys), _joined(part.seen_values)
        return F.scaled_dot_product_attention(q, keys, values).transpose(1, 2).flatten(2)


def _joined(pieces: list[Tensor]) -> Tensor:
    """Visible rows ``[B, heads, n, head_dim]`` of a buffer."""
    # Only a ring longer than the window, of a table whose cycle does not divide it, leaves gaps.
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


class _MergedView:
    """Views of two neighbouring blocks, used one after the other at every attention."""

    def __init__(self, cache: RingCache, index: int) -> None:
        self.cache, self.index = cache, index
        self.refresh = RingView(cache, index - 1, write=True)
        self.step = RingView(cache, index, write=False)
        self.starts = self.takes_sinks = index == 1
        self.graph_key: Hashable = (self.refresh.graph_key, self.step.graph_key)
        # Tokens of the refreshed block, which come first.
        self._first = {stream: len(cache.places.span(index - 1, stream)) for stream in STREAMS}
        self.group_ids: Pair[Tensor | None] = Pair(self._ids("video"), self._ids("audio"))

    def _ids(self, stream: str) -> Tensor:
        """Group of each token ``[N]``: 0 for the refresh, 1 for the step."""
        first, then = self._first[stream], len(self.cache.places.span(self.index, stream))
        return torch.tensor([0] * first + [1] * then)

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        asked, kept = self._first[SITES[site].queries], self._first[SITES[site].keys]
        refreshed = self.refresh.attend(layer, site, heads, q[:, :asked], k[:, :kept], v[:, :kept])
        # The step sees the refreshed keys, and the history from one block further on. Both are in
        # the same buffers, so this order is the only right one.
        if self.index > self.cache.places.horizon:
            history = self.cache.history(self.index, site)
            self.cache.rotate(CacheKey(layer, site), history)
        stepped = self.step.attend(layer, site, heads, q[:, asked:], k[:, kept:], v[:, kept:])
        return torch.cat([refreshed, stepped], 1)
