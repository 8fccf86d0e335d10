"""RoPE in the fewest passes: tables of complex numbers, for channels whose pairs are neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omniforcing.core.layout import Span
from omniforcing.model.attention import Positions, split_heads


class PairedPositions(Positions):
    """RoPE tables as complex numbers ``[T, C / 2]``, for channels whose pairs are neighbours."""

    def _stored(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        if cos.ndim == 4:  # a split table: heads, then their pairs
            cos, sin = (t[0].transpose(0, 1).flatten(1) for t in (cos, sin))
        else:  # an interleaved table has every value twice
            cos, sin = (t[0, :, ::2] for t in (cos, sin))
        return (torch.complex(cos.contiguous(), sin.contiguous()),)

    def turn(self, x: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        """Rotate ``x [B, N, C]`` by the rows of its places."""
        return torch.view_as_real(_pairs(x.float()) * rows[0]).flatten(-2).to(x.dtype)

    def rotate(self, x: Tensor, axes: str, stream: str, span: Span) -> Tensor:
        """Rotate ``x [B, N, C]`` to the places ``span`` (N tokens) of a stream."""
        return self.turn(x, self.rows(axes, stream, span, x.device))

    def turn_into(self, place: Tensor, x: Tensor, rows: tuple[Tensor, ...]) -> None:
        """Rotate ``x [B, N, C]`` into ``place [B, heads, N, head_dim]``."""
        if x.dtype is not torch.float32:
            super().turn_into(place, x, rows)
            return
        # In one pass, without a copy of what was rotated.
        heads = place.shape[1]
        table = split_heads(rows[0].unsqueeze(0), heads)
        torch.mul(_pairs(split_heads(x, heads)), table, out=_pairs(place))


def _pairs(x: Tensor) -> Tensor:
    """Neighbouring channels of ``x [..., C]`` as complex numbers ``[..., C / 2]``."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def rotate_pairs(x: Tensor, table: Tensor) -> Tensor:
    """Rotate pairs of channels of ``x [B, N, C]`` by cosines and sines ``[N, C / 2, 2]``."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


class CompiledPositions(PairedPositions):
    """The same rotation in one compiled pass over real numbers; torch compiles no complex ones."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._rotate_pairs = torch.compile(rotate_pairs, dynamic=True)

    def turn(self, x: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        """Rotate ``x [B, N, C]`` by the rows of its places."""
        return self._rotate_pairs(x, torch.view_as_real(rows[0]))

    turn_into = Positions.turn_into
