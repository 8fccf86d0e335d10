"""K/V caches of the causal student: functional in training, static ring buffers in streaming.

Both keep keys un-rotated and turn them once per block to their places below the horizon (``BlockTable.position``), so an
endless stream meets no distance, no phase against a sink and no rounding that training has not.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from omniforcing.core.latents import Pair
from omniforcing.core.layout import BlockTable, Span
from omniforcing.core.states import State
from omniforcing.model.attention import SITES, Positions, View, sdpa

Key = tuple[int, str]  # layer, site


class Cache(Protocol):
    """History of a rollout. ``view`` opens block b; the refresh forward of ``view(b, write=True)`` leaves its K/V behind."""

    def view(self, index: int, write: bool = False) -> View: ...


class _Places:
    """Where blocks stand in time as seen from the present one, for either cache."""

    def __init__(self, positions: Positions, table: BlockTable, window: int, horizon: int) -> None:
        self.positions, self.table, self.window, self.horizon = positions, table, window, horizon

    def span(self, index: int, stream: str) -> Span:
        spans = self.table.block(index).tokens(self.positions.spatial, self.positions.sinks)
        return spans[0] if stream == "video" else spans[1]

    def present(self, index: int) -> int:
        return self.table.position(index, self.horizon)

    def past(self, index: int) -> tuple[int, ...]:
        return self.table.visible(index, self.window)[:-1]

    def seen_at(self, index: int, past: int) -> int:
        return self.table.seen_at(index, past, self.horizon)


class FunctionalCache:
    """History as a list of tensors per block: nothing is overwritten, so gradients and checkpointing stay correct.

    History is detached: a block's loss reaches the weights through its own forward alone (self-forcing).
    """

    def __init__(self, positions: Positions, table: BlockTable, window: int, horizon: int) -> None:
        self.places = _Places(positions, table, window, horizon)
        self.blocks: dict[int, dict[Key, tuple[Tensor, Tensor]]] = {}
        self._open: tuple[int, dict[Key, tuple[Tensor, Tensor]]] | None = None

    def view(self, index: int, write: bool = False) -> View:
        if self._open is None or self._open[0] != index:
            self._open = (index, self._gather(index))
        record = self.blocks.setdefault(index, {}) if write else None
        return _FunctionalView(self.places, index, self._open[1], record)

    def _gather(self, index: int) -> dict[Key, tuple[Tensor, Tensor]]:
        places = self.places
        past = places.past(index)
        for stale in [b for b in self.blocks if b not in past]:
            del self.blocks[stale]
        history: dict[Key, tuple[Tensor, Tensor]] = {}
        for layer, site in self.blocks[0] if past else ():
            _, keys, axes = SITES[site]
            turned = [
                places.positions.rotate(
                    self.blocks[b][layer, site][0],
                    axes,
                    keys,
                    places.span(places.seen_at(index, b), keys),
                )
                for b in past
            ]
            values = [self.blocks[b][layer, site][1] for b in past]
            history[layer, site] = (torch.cat(turned, 1), torch.cat(values, 1))
        return history


class _FunctionalView:
    kind: Hashable = None

    def __init__(
        self,
        places: _Places,
        index: int,
        history: dict[Key, tuple[Tensor, Tensor]],
        record: dict[Key, tuple[Tensor, Tensor]] | None,
    ) -> None:
        self.places, self.history, self.record = places, history, record
        self.starts = index == 0
        self.place = places.present(index)
        self.owner: Pair[Tensor | None] = Pair(None, None)

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, axes = SITES[site]
        if self.record is not None:
            self.record[layer, site] = (k.detach(), v.detach())
        q = self.places.positions.rotate(q, axes, queries, self.places.span(self.place, queries))
        k = self.places.positions.rotate(k, axes, keys, self.places.span(self.place, keys))
        if self.history:
            old_k, old_v = self.history[layer, site]
            k, v = torch.cat([old_k, k], 1), torch.cat([old_v, v], 1)
        return sdpa(q, k, v, heads)


class RingCache:
    """Static buffers: prefix and sinks pinned in front, then a ring of ``window`` past blocks and the present one.

    A step writes the present block's K/V into its slot and attends to the buffer as it lies, head by head; nothing is copied
    or allocated per step. The ring is rounded up to whole cycles of the table. Without gradient only.
    """

    def __init__(self, positions: Positions, table: BlockTable, window: int, horizon: int) -> None:
        self.places = _Places(positions, table, window, horizon)
        self.slots = table.ring(window)
        self.buffers: dict[Key, _Buffer] = {}
        self._turned = 0

    def slot(self, index: int, stream: str) -> Span:
        return self.places.span(self.places.table.slot(index, self.slots).index, stream)

    def view(self, index: int, write: bool = False) -> View:
        if index > self.places.horizon and self._turned != index:
            self._turn(index)
            self._turned = index
        return _RingView(self, index, write)

    def buffer(self, layer: int, site: str, heads: int, like: Tensor) -> _Buffer:
        """The buffers of one site, made when it first writes ``like [B, N, C]``."""
        if (layer, site) not in self.buffers:
            capacity = self.places.span(self.slots, SITES[site][1]).stop
            shape = (like.shape[0], heads, capacity, like.shape[2] // heads)
            flat = like.new_zeros(like.shape[0], capacity, like.shape[2])
            self.buffers[layer, site] = _Buffer(flat, like.new_zeros(shape), like.new_zeros(shape))
        return self.buffers[layer, site]

    def visible(self, index: int, stream: str) -> list[Span]:
        """What of the buffer block ``index`` sees: one span where that is all that was written, else several."""
        spans = sorted(
            (self.slot(b, stream) for b in self.places.table.visible(index, self.places.window)),
            key=lambda s: s.start,
        )
        merged = [spans[0]]
        for span in spans[1:]:
            if span.start == merged[-1].stop:
                merged[-1] = Span(merged[-1].start, span.stop)
            else:
                merged.append(span)
        return merged

    def merged_view(self, index: int) -> View:
        """Block ``index - 1`` as its refresh and block ``index`` as its first step, one behind the other in one forward.

        At every site the refresh comes first, with the history turned to its own present; then that is turned for the step.
        """
        view = _MergedView(self, index)
        self._turned = index
        return view

    def state(self) -> State:
        """A copy of all that is held, for ``restore``."""
        parts = ("raw", "turned", "values")
        held = {
            f"{layer}.{site}.{part}": tensor.clone()
            for (layer, site), buffers in self.buffers.items()
            for part, tensor in zip(parts, buffers, strict=True)
        }
        return {**held, "turned_for": torch.tensor(self._turned)}

    def restore(self, state: State) -> None:
        """Hold again what ``state`` copied from a cache of the same model and table."""
        self._turned = int(state["turned_for"])
        for key in {name.rpartition(".")[0] for name in state if name != "turned_for"}:
            layer, site = key.split(".")
            kept = _Buffer(
                *(state[f"{key}.{part}"].clone() for part in ("raw", "turned", "values"))
            )
            # Buffers stay where they are: recorded forwards read and write there.
            for place, value in zip(
                self.buffers.setdefault((int(layer), site), kept), kept, strict=True
            ):
                place.copy_(value)

    def _turn(self, index: int) -> None:
        for key in self.buffers:
            self.turn(key, index)

    def turn(self, key: Key, index: int) -> None:
        """Turn one site's history to the places that it has for a block past the horizon."""
        places, buffer = self.places, self.buffers[key]
        _, keys, axes = SITES[key[1]]
        for b in places.past(index)[1:]:
            at, to = self.slot(b, keys).slice, places.span(places.seen_at(index, b), keys)
            buffer.write(
                buffer.keys, at, places.positions.rotate(buffer.raw[:, at], axes, keys, to)
            )


class _Buffer(NamedTuple):
    """One site's un-rotated keys ``[B, capacity, C]``, and its turned keys and values ``[B, heads, capacity, D]``."""

    raw: Tensor
    keys: Tensor
    values: Tensor

    def write(self, to: Tensor, at: slice, x: Tensor) -> None:
        """Put ``x [B, N, C]`` at ``at`` of the buffer ``to``."""
        to[:, :, at] = x.unflatten(-1, (to.shape[1], -1)).transpose(1, 2)


class _RingView:
    def __init__(self, cache: RingCache, index: int, write: bool) -> None:
        self.cache, self.write = cache, write
        self.starts = index == 0
        self.owner: Pair[Tensor | None] = Pair(None, None)
        place = cache.places.present(index)
        streams = ("video", "audio")
        self._place = {stream: cache.places.span(place, stream) for stream in streams}
        self._slot = {stream: cache.slot(index, stream).slice for stream in streams}
        seen = {stream: cache.visible(index, stream) for stream in streams}
        self._seen = {stream: [span.slice for span in spans] for stream, spans in seen.items()}
        self.kind: Hashable = (place, cache.slot(index, "video"), *seen["video"], write)

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, axes = SITES[site]
        rotate, buffer = (
            self.cache.places.positions.rotate,
            self.cache.buffer(layer, site, heads, k),
        )
        at = self._slot[keys]
        buffer.write(buffer.keys, at, rotate(k, axes, keys, self._place[keys]))
        buffer.write(buffer.values, at, v)
        if self.write:
            buffer.raw[:, at] = k
        q = (
            rotate(q, axes, queries, self._place[queries])
            .unflatten(-1, (heads, -1))
            .transpose(1, 2)
        )
        # Only a ring longer than the window (a table whose cycle does not divide it) leaves gaps to join over.
        seen = self._seen[keys]
        old, values = (
            x[:, :, seen[0]] if len(seen) == 1 else torch.cat([x[:, :, part] for part in seen], 2)
            for x in (buffer.keys, buffer.values)
        )
        return F.scaled_dot_product_attention(q, old, values).transpose(1, 2).flatten(2)


class _MergedView:
    """Two views of neighbouring blocks, used one after the other at every site; see ``RingCache.merged_view``."""

    def __init__(self, cache: RingCache, index: int) -> None:
        self.cache, self.index = cache, index
        self.refresh, self.step = (
            _RingView(cache, index - 1, write=True),
            _RingView(cache, index, write=False),
        )
        self.starts = index == 1
        self.kind: Hashable = (self.refresh.kind, self.step.kind)
        streams = ("video", "audio")
        self._first = {stream: len(cache.places.span(index - 1, stream)) for stream in streams}
        sizes = ((self._first[stream], len(cache.places.span(index, stream))) for stream in streams)
        self.owner: Pair[Tensor | None] = Pair(
            *(torch.tensor([0] * first + [1] * then) for first, then in sizes)
        )

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        asked, kept = (self._first[stream] for stream in SITES[site][:2])
        refreshed = self.refresh.attend(layer, site, heads, q[:, :asked], k[:, :kept], v[:, :kept])
        if self.index > self.cache.places.horizon:
            self.cache.turn((layer, site), self.index)
        return torch.cat(
            [
                refreshed,
                self.step.attend(layer, site, heads, q[:, asked:], k[:, kept:], v[:, kept:]),
            ],
            1,
        )
