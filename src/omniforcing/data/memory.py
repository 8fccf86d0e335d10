"""Clips of a split, decoded into memory as tensors."""

from __future__ import annotations

import sys
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.pair import Pair
from omniforcing.data.shards import decode_media, read_raw
from omniforcing.data.tars import indices, shard_form

# Most frames that a training holds in memory: 7200 clips of 4 s at 64x64 pixels, 1800 at 128x128.
LARGEST_BYTES = 8 * 2**30


def clips_of(shards: Path, split: str, count: int | None = None) -> Pair[Tensor]:
    """Decode the first ``count`` clips of a split (None: all).

    Returns:
        Frames uint8 ``[N, T, H, W, 3]`` and samples float32 ``[N, 2, S]``.
    """
    return Pair(*(stack(shards, split, kind, count) for kind in ("video", "audio")))


def stack(
    shards: Path, split: str, kind: str, count: int | None = None, largest: int | None = None
) -> Tensor:
    """Decode the frames or samples of a split's clips; each clip is in memory only once.

    Args:
        shards: output folder of stage shards.
        split: the split.
        kind: ``video`` or ``audio``.
        count: number of clips, from the first on; None for all.
        largest: most bytes to hold; None for no limit. If the clips take more, as many are decoded
            as fit, evenly spaced.

    Returns:
        Frames uint8 ``[N, T, H, W, 3]`` or samples float32 ``[N, 2, S]``.

    Raises:
        OmniForcingError: if the split has no clips.
    """
    form, found = shard_form(shards), min(count or sys.maxsize, clips_in(shards, split))
    stored = islice(read_raw(shards, split), found)

    def decoded(path: Path, raw: dict[str, Any]) -> Tensor:
        return torch.from_numpy(getattr(decode_media(form, path, raw), kind))

    if (head := next(stored, None)) is None:
        raise OmniForcingError(
            "data.no-clips",
            f"{shards} has no {split} clips; "
            "set clips.count and clips.heldout so that each split has some",
        )
    first = decoded(*head)
    wanted = found if largest is None else min(found, max(1, largest // first.nbytes))
    chosen = {place * found // wanted for place in range(wanted)}
    others = (decoded(*pair) for index, pair in enumerate(stored, 1) if index in chosen)
    held = first.new_empty(wanted, *first.shape)
    for place, clip in zip(held, chain([first], others), strict=True):
        place.copy_(clip)
    return held


def clips_in(shards: Path, split: str) -> int:
    """Number of clips of a split."""
    return sum(index["n"] for index in indices(shards, "shards", split).values())
