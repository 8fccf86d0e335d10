"""Which keys a query sees: the whole clip, a block-causal clip, or one block against a cache.

At every attention site the transformer hands its un-rotated queries and keys to the view. The
view rotates them to their places in time and attends to exactly the keys that may be seen. No
dense mask exists anywhere.

Sites: ``video`` and ``audio`` (self), ``a2v`` (queries video, keys audio), ``v2a`` (queries audio,
keys video).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from omniforcing.core.layout import BlockTable, Counts, Span, join_spans
from omniforcing.core.pair import Pair
from omniforcing.model.compat import meta_attention
from omniforcing.model.functions.few_passes import in_few_passes, rotate_halves
from omniforcing.networks.layers import rotate_interleaved, rotate_split
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel


class Site(NamedTuple):
    """Where attention with RoPE takes place.

    Attributes:
        queries: stream of the queries.
        keys: stream of the keys and values.
        axes: ``own`` for RoPE over all axes of the stream, ``cross`` for time alone.
    """

    queries: str
    keys: str
    axes: str


SITES = {
    "video": Site("video", "video", "own"),
    "audio": Site("audio", "audio", "own"),
    "a2v": Site("video", "audio", "cross"),
    "v2a": Site("audio", "video", "cross"),
}


class View(Protocol):
    """What the transformer needs to know about the tokens it is given.

    Attributes:
        starts: whether the tokens begin the stream: the first video latent is its first.
        takes_sinks: whether sinks come first in the audio.
        group_ids: per stream the group ``[N]`` of each token, which a sigma per group refers to;
            None where all tokens are one group.
        graph_key: equal for views of one cache whose forwards differ in numbers alone, so that
            one recorded CUDA graph serves both; None where no two are alike.
    """

    starts: bool
    takes_sinks: bool
    group_ids: Pair[Tensor | None]
    graph_key: Hashable

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention output ``[B, Nq, heads * head_dim]``.

        Args:
            layer: number of the transformer block.
            site: a key of ``SITES``.
            heads: number of heads.
            q: un-rotated queries ``[B, Nq, C]``.
            k: un-rotated keys ``[B, Nk, C]`` of the view's own tokens.
            v: their values ``[B, Nk, C]``.
        """
        ...


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, N, heads * head_dim]`` as ``[B, heads, N, head_dim]``, without a copy."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention on ``[B, N, heads * head_dim]`` tensors, every key visible."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    attend = meta_attention if q.is_meta else F.scaled_dot_product_attention
    return attend(q, k, v).transpose(1, 2).flatten(2)


class _Halves(NamedTuple):
    """Cosines and sines ``[T, C]`` of a split table, and its heads, for ``rotate_halves``."""

    cos: Tensor
    sin: Tensor
    heads: int


class Positions:
    """RoPE tables of the first latents of a stream, sinks included, for all four sites.

    Angles are computed in fp64 from the transformer's own coordinates and modules, then cast: fp32
    angles lose 1.4e-3 rad within 5 s.

    Args:
        core: the transformer, whose RoPE modules are used.
        counts: latents of each stream.
        grid: spatial tokens of a video latent, (H, W).
        sinks: sink tokens in front of the audio. They have the identity rotation (section 3.3).
        growing: give sink i the rotation of audio latent i instead.
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
        self._rotate = rotate_split if core.config.rope_type == "split" else rotate_interleaved
        device, dtype = core.proj_in.weight.device, torch.float32
        if device.type == "meta":
            # Angles do not depend on the weights, which may get their memory later.
            device = torch.device("cpu")
        video = core.rope.prepare_video_coords(1, counts.video, *grid, device=device).double()
        latents = max(counts.audio, sinks)
        audio = core.audio_rope.prepare_audio_coords(1, latents, device=device).double()
        tables = {
            ("own", "video"): core.rope(video),
            ("own", "audio"): core.audio_rope(audio),
            # Cross-modal attention rotates by time alone, the first axis: audio has no others.
            ("cross", "video"): core.cross_attn_rope(video[:, :1]),
            ("cross", "audio"): core.cross_attn_audio_rope(audio[:, :1]),
        }
        self._tables: dict[tuple[str, str], tuple[Tensor, ...]] = {}
        self._split: dict[tuple[str, str], _Halves] = {}
        for key, (cos, sin) in tables.items():
            cos, sin = cos.to(dtype), sin.to(dtype)
            if key[1] == "audio" and sinks:
                # Sinks get rows of their own in front, so that a span of the stream's tokens,
                # which counts them, is a span of the table.
                first_cos, first_sin = cos[..., :sinks, :], sin[..., :sinks, :]
                if not growing:
                    first_cos, first_sin = torch.ones_like(first_cos), torch.zeros_like(first_sin)
                cos, sin = torch.cat([first_cos, cos], -2), torch.cat([first_sin, sin], -2)
            self._tables[key] = self._stored(cos, sin)

    def _stored(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Bring a table to the form in which ``rotate`` uses it."""
        return cos, sin

    def _table(self, axes: str, stream: str, device: torch.device) -> tuple[Tensor, ...]:
        # Stages make their view before Lightning moves the model to a GPU; the tables follow once.
        tables = self._tables[axes, stream]
        if tables[0].device != device:
            tables = self._tables[axes, stream] = tuple(table.to(device) for table in tables)
        return tables

    def _halves(self, axes: str, stream: str) -> _Halves:
        """A split table in the form that ``rotate_halves`` takes, made once."""
        if (axes, stream) not in self._split:
            cos, sin = self._table(axes, stream, torch.device("cpu"))
            twice = torch.cat([cos[0], cos[0]], -1).transpose(0, 1).flatten(1)
            signed = torch.cat([-sin[0], sin[0]], -1).transpose(0, 1).flatten(1)
            self._split[axes, stream] = _Halves(twice, signed, cos.shape[1])
        return self._split[axes, stream]

    def rows(self, axes: str, stream: str, span: Span, device: torch.device) -> tuple[Tensor, ...]:
        """Rows of a table for the places ``span`` (N tokens) of a stream, for ``turn``."""
        return tuple(table[..., span.slice, :] for table in self._table(axes, stream, device))

    def turn(self, x: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        """Rotate ``x [B, N, C]`` by the rows of its places."""
        cos, sin = rows
        return self._rotate(x, (cos, sin))

    def turn_into(self, place: Tensor, x: Tensor, rows: tuple[Tensor, ...]) -> None:
        """Rotate ``x [B, N, C]`` into ``place [B, heads, N, head_dim]``."""
        place[...] = split_heads(self.turn(x, rows), place.shape[1])

    def rotate(self, x: Tensor, axes: str, stream: str, span: Span) -> Tensor:
        """Rotate ``x [B, N, C]`` to the places ``span`` (N tokens) of a stream."""
        if self._rotate is rotate_split and in_few_passes(x):
            table = self._halves(axes, stream)
            return rotate_halves(x, table.cos[span.slice], table.sin[span.slice], table.heads)
        return self.turn(x, self.rows(axes, stream, span, x.device))


@dataclass
class Full:
    """Every token sees every token, as in the bidirectional models. No sinks."""

    positions: Positions
    starts: bool = True
    takes_sinks: bool = False
    graph_key: Hashable = None
    group_ids: Pair[Tensor | None] = field(default_factory=lambda: Pair(None, None))

    def attend(
        self,
        layer: int,  # noqa: ARG002
        site: str,
        heads: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        queries, keys, axes = SITES[site]
        q = self.positions.rotate(q, axes, queries, Span(0, q.shape[1]))
        k = self.positions.rotate(k, axes, keys, Span(0, k.shape[1]))
        return sdpa(q, k, v, heads)


class Masked:
    """A whole clip, block-causal: block b sees the prefix (with sinks), its window and itself.

    Each block's queries attend to the slice of keys that they may see: no masked entry is computed.

    Args:
        positions: RoPE tables of the clip.
        table: the block table.
        count: blocks of the clip.
        window: past blocks that a block sees besides the prefix; None for all.
        horizon: index of the last block that has a place in time of its own.
    """

    starts = takes_sinks = True
    graph_key: Hashable = None

    def __init__(
        self, positions: Positions, table: BlockTable, count: int, window: int | None, horizon: int
    ) -> None:
        self.positions, self.table = positions, table
        self.count, self.window, self.horizon = count, window, horizon
        self._spans: dict[str, list[Span]] = {"video": [], "audio": []}
        for block in table.blocks(count):
            video, audio = block.tokens(positions.spatial, positions.sinks)
            self._spans["video"].append(video)
            self._spans["audio"].append(audio)
        self.group_ids: Pair[Tensor | None] = Pair(
            _ids(self._spans["video"]), _ids(self._spans["audio"])
        )

    def attend(
        self,
        layer: int,  # noqa: ARG002
        site: str,
        heads: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        queries, keys, axes = SITES[site]
        rotate = self.positions.rotate
        outputs = []
        # Block by block, as a stream attends: a dense mask over the clip would compute every
        # pair of tokens, and rotations differ from block to block once past the horizon.
        for block in range(self.count):
            # Past the horizon a block takes the place in time of an earlier one of its kind, as
            # in a stream: the tokens stay where they are in the tensor, their rotation changes.
            place = self._spans[queries][self.table.position(block, self.horizon)]
            query = rotate(q[:, self._spans[queries][block].slice], axes, queries, place)
            rotated, values = [], []
            for piece in self._visible(block, keys):
                rotated.append(rotate(k[:, piece.tokens.slice], axes, keys, piece.place))
                values.append(v[:, piece.tokens.slice])
            key, value = torch.cat(rotated, 1), torch.cat(values, 1)
            outputs.append(self.mix(site, block, query, key, value, heads))
        return torch.cat(outputs, 1)

    def _visible(self, block: int, stream: str) -> list[_Piece]:
        """Tokens that a block sees, in as few pieces as possible."""
        spans = self._spans[stream]
        pieces = []
        # Up to the horizon all visible blocks but the prefix follow one another: merged, they are
        # one rotation and one slice instead of one per block.
        for past in self.table.visible(block, self.window):
            place = self.table.seen_at(block, past, self.horizon)
            pieces.append(_Piece(spans[past], spans[place]))
        return [_Piece(*piece) for piece in join_spans(pieces)]

    def mix(
        self,
        site: str,  # noqa: ARG002
        block: int,  # noqa: ARG002
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
    ) -> Tensor:
        """Attention of one block's rotated queries to the keys they see; a measurement's hook."""
        return sdpa(q, k, v, heads)


class _Piece(NamedTuple):
    """Tokens of a clip, and the places in time that they take as a block sees them."""

    tokens: Span
    place: Span


def _ids(spans: list[Span]) -> Tensor:
    """Index of the block of each token, ``[N]``."""
    lengths = torch.tensor([len(span) for span in spans])
    return torch.arange(len(spans)).repeat_interleave(lengths)
