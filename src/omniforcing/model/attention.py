"""Which keys a query sees: the whole clip, a block-causal clip, or one block against a cache.

The transformer hands every attention site its un-rotated queries and keys; the view rotates them to their places in time
and calls plain scaled dot-product attention on exactly the keys that may be seen. No dense mask exists anywhere.

Sites: ``video`` and ``audio`` (self), ``a2v`` (queries video, keys audio), ``v2a`` (queries audio, keys video).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2VideoTransformer3DModel,
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from torch import Tensor

from omniforcing.core.latents import Pair
from omniforcing.core.layout import BlockTable, Counts, Span
from omniforcing.model.compat import meta_attention

Rope = tuple[Tensor, Tensor]
# site: (stream of the queries, stream of the keys, whether RoPE has all axes or time alone)
SITES = {
    "video": ("video", "video", "own"),
    "audio": ("audio", "audio", "own"),
    "a2v": ("video", "audio", "cross"),
    "v2a": ("audio", "video", "cross"),
}


class View(Protocol):
    """What the transformer needs to know about the tokens it is given."""

    starts: bool
    owner: Pair[Tensor | None]
    # Equal for views of one cache whose forwards differ in numbers alone; None where no two are alike.
    kind: Hashable

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention output ``[B, Nq, heads * D]`` for un-rotated ``q [B, Nq, C]`` and this view's own ``k, v [B, Nk, C]``."""
        ...


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention on ``[B, N, heads * D]`` tensors, every key visible."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if q.is_meta:
        return meta_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Positions:
    """RoPE tables of the first latents of a stream, sinks included, for all four sites.

    Angles are computed in fp64 from diffusers' own coordinates and modules, then cast (``facts``: fp32 angles lose
    1.4e-3 rad within 5 s). Sinks have the identity rotation (paper section 3.3), or with ``growing`` that of the audio
    latents from the first one on, sink i at the place of latent i.
    """

    def __init__(
        self,
        core: LTX2VideoTransformer3DModel,
        counts: Counts,
        grid: tuple[int, int],
        sinks: int = 0,
        growing: bool = False,
    ) -> None:
        self.spatial = grid[0] * grid[1]
        self.sinks = sinks
        self._rotate = (
            apply_split_rotary_emb
            if core.config.rope_type == "split"
            else apply_interleaved_rotary_emb
        )
        device, dtype = core.proj_in.weight.device, torch.float32
        # A model without memory for its weights gets it later; angles do not depend on them.
        device = torch.device("cpu") if device.type == "meta" else device
        video = core.rope.prepare_video_coords(1, counts.video, *grid, device=device).double()
        audio = core.audio_rope.prepare_audio_coords(
            1, max(counts.audio, sinks), device=device
        ).double()
        tables = {
            ("own", "video"): core.rope(video),
            ("own", "audio"): core.audio_rope(audio),
            ("cross", "video"): core.cross_attn_rope(video[:, :1]),
            ("cross", "audio"): core.cross_attn_audio_rope(audio[:, :1]),
        }
        self._tables: dict[tuple[str, str], tuple[Tensor, ...]] = {}
        for key, (cos, sin) in tables.items():
            cos, sin = cos.to(dtype), sin.to(dtype)
            if key[1] == "audio" and sinks:
                places = cos[..., :sinks, :], sin[..., :sinks, :]
                first = (
                    places if growing else (torch.ones_like(places[0]), torch.zeros_like(places[1]))
                )
                cos, sin = torch.cat([first[0], cos], -2), torch.cat([first[1], sin], -2)
            self._tables[key] = self._finish(cos, sin)

    def _finish(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Tables in the form that ``rotate`` uses."""
        return cos, sin

    def _table(self, axes: str, stream: str, device: torch.device) -> tuple[Tensor, ...]:
        # Stages make their view before Lightning moves the model to a GPU: the tables follow, once.
        tables = self._tables[axes, stream]
        if tables[0].device != device:
            tables = self._tables[axes, stream] = tuple(table.to(device) for table in tables)
        return tables

    def rotate(self, x: Tensor, axes: str, stream: str, span: Span) -> Tensor:
        """Turn ``x [B, N, C]`` to the places ``span`` (N tokens) of a stream."""
        cos, sin = (table[..., span.slice, :] for table in self._table(axes, stream, x.device))
        if cos.ndim == 4:  # split tables carry heads; diffusers wants the batch spelled out
            cos, sin = (table.expand(x.shape[0], -1, -1, -1) for table in (cos, sin))
        return self._rotate(x, (cos, sin))


@dataclass
class Full:
    """Every token sees every token: the bidirectional models. No sinks."""

    positions: Positions
    starts: bool = False
    kind: Hashable = None
    owner: Pair[Tensor | None] = field(default_factory=lambda: Pair(None, None))

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        queries, keys, axes = SITES[site]
        q = self.positions.rotate(q, axes, queries, Span(0, q.shape[1]))
        k = self.positions.rotate(k, axes, keys, Span(0, k.shape[1]))
        return sdpa(q, k, v, heads)


class Masked:
    """A whole clip, block-causal: block b sees the prefix (with sinks), its window and itself.

    Each block's queries go against the slice of keys they may see, which is exact and never computes a masked entry.
    """

    starts = True
    kind: Hashable = None

    def __init__(
        self, positions: Positions, table: BlockTable, count: int, window: int | None, horizon: int
    ) -> None:
        self.positions, self.table, self.count, self.window, self.horizon = (
            positions,
            table,
            count,
            window,
            horizon,
        )
        spans = [block.tokens(positions.spatial, positions.sinks) for block in table.blocks(count)]
        self._spans = {"video": [s[0] for s in spans], "audio": [s[1] for s in spans]}
        self.owner = Pair(
            *(
                torch.tensor(
                    [b for b, span in enumerate(self._spans[stream]) for _ in range(len(span))]
                )
                for stream in ("video", "audio")
            )
        )

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        queries, keys, axes = SITES[site]
        outputs = []
        for b in range(self.count):
            own = self._spans[queries][b]
            place = self._spans[queries][self.table.position(b, self.horizon)]
            past = [
                (c, self.table.seen_at(b, c, self.horizon))
                for c in self.table.visible(b, self.window)
            ]
            pieces = [(self._spans[keys][at], self._spans[keys][to]) for at, to in past]
            rotated = [
                self.positions.rotate(k[:, at.slice], axes, keys, to) for at, to in _merge(pieces)
            ]
            seen = [v[:, at.slice] for at, _ in _merge(pieces)]
            query = self.positions.rotate(q[:, own.slice], axes, queries, place)
            outputs.append(
                self.mix(site, b, query, torch.cat(rotated, 1), torch.cat(seen, 1), heads)
            )
        return torch.cat(outputs, 1)

    def mix(self, site: str, block: int, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:  # noqa: ARG002
        """Attention of one block's rotated queries to all that they see; measurements look in here."""
        return sdpa(q, k, v, heads)


def _merge(pieces: list[tuple[Span, Span]]) -> list[tuple[Span, Span]]:
    """Join pieces that follow one another both in the tensor and in time."""
    joined = [pieces[0]]
    for at, to in pieces[1:]:
        last_at, last_to = joined[-1]
        if last_at.stop == at.start and last_to.stop == to.start:
            joined[-1] = (Span(last_at.start, at.stop), Span(last_to.start, to.stop))
        else:
            joined.append((at, to))
    return joined
