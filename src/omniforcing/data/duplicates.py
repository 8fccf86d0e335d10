"""Duplicates: files with the same bytes, and clips that look the same on both sides of a split.

Clips are compared by a perceptual hash: of a few moments, which coarse waves of brightness lie
above the median (pHash: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash
Functions, 2010), and the mean colours of its patches. Another encoding, size or brightness hardly
changes either, nor do the moments in another order: each is compared with all of the other clip.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.files import sha256_file
from omniforcing.data.rejects import Reject
from omniforcing.data.tars import read_tar

Frames = NDArray[np.uint8]  # [T, H, W, 3]
Bits = NDArray[np.uint64]  # [M]

MOMENTS = 8  # pictures of a clip that are hashed, evenly spaced in time
SIDE, WAVES = 32, 8  # pixels of the small picture, and coarsest waves of it on each axis
PATCHES = 8  # patches of a picture on each axis, whose mean colours are kept
LUMA = (0.2126, 0.7152, 0.0722)
# Standard deviation of brightness, of 255, below which a picture has no detail: a black clip is
# like any other black clip.
FLAT = 2.0
# Two clips look the same up to both. Bouncing balls look more alike than most videos: among 25,600
# pairs of such clips two come within 8 bits and 48 levels, and none within 8 bits and 39 levels.
# Encoded again at CRF 30 or brighter, a clip differs from itself by at most 5 bits and 18 levels.
NEAR_BITS = 8.0  # of 64: mean difference
NEAR_LEVELS = 32.0  # of 255: difference of the patch that differs most, mean over the moments
MOMENTS_AT_ONCE = 1 << 20  # compared in one step, which bounds memory


@dataclass(frozen=True)
class ClipHash:
    """What is seen in a clip at M moments, at most ``MOMENTS``; those without detail are left out.

    Attributes:
        bits: perceptual hash of each moment, uint64 ``[M]``.
        colours: mean colours of its patches, uint8 ``[M, PATCHES, PATCHES, 3]``.
    """

    bits: Bits
    colours: NDArray[np.uint8]

    def to_text(self) -> str:
        """Write the hash as one word for JSON."""
        return b64encode(self.bits.astype("<u8").tobytes() + self.colours.tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> ClipHash:
        """Read what ``to_text`` wrote."""
        data = b64decode(text)
        count = len(data) // (8 + PATCHES * PATCHES * 3)
        colours = np.frombuffer(data, np.uint8, offset=8 * count)
        bits = np.frombuffer(data, "<u8", count).astype(np.uint64)
        return cls(bits, colours.reshape(count, PATCHES, PATCHES, 3))

    @property
    def is_telling(self) -> bool:
        """Whether most of the clip has detail to compare."""
        return len(self.bits) >= MOMENTS / 2


@dataclass(frozen=True)
class NearPair:
    """A training clip and the held-out clip that looks most like it.

    Attributes:
        train: name of the training clip.
        heldout: name of the held-out clip.
        bits: mean difference of their hashes, 0 to 64.
        levels: mean difference of their colours, 0 to 255.
    """

    train: str
    heldout: str
    bits: float
    levels: float


def copies(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Find files with the same bytes.

    Only files of the same size are read.

    Args:
        folder: folder of the files.
        names: their names, relative to it.

    Returns:
        Name of the first by the name of each copy; first is the shortest name, then the alphabet.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for name in sorted(names, key=lambda name: (len(name), name)):
        try:
            by_size[(folder / name).stat().st_size].append(name)
        except OSError:  # whoever opens it will say so
            continue
    found: dict[str, str] = {}
    for size, alike in by_size.items():
        if size == 0 or len(alike) < 2:
            continue
        firsts: dict[str, str] = {}
        for name in alike:
            try:
                first = firsts.setdefault(sha256_file(folder / name), name)
            except OSError:
                continue
            if first != name:
                found[name] = first
    return found


def clip_hash(frames: Frames) -> ClipHash:
    """Hash what is seen in a clip.

    Args:
        frames: uint8 ``[T, H, W, 3]``.
    """
    from scipy.fft import dctn

    chosen = ((np.arange(MOMENTS) + 0.5) / MOMENTS * len(frames)).astype(int)
    pictures = frames[np.unique(chosen)]
    small = np.stack([_brightness(picture) for picture in pictures])
    detailed = small.std((1, 2)) >= FLAT
    small, pictures = small[detailed], pictures[detailed]
    waves = dctn(small, axes=(1, 2), norm="ortho")[:, :WAVES, :WAVES].reshape(-1, WAVES * WAVES)
    # The first is the mean brightness, which says nothing of the picture's shape.
    middle = np.median(waves[:, 1:], axis=1, keepdims=True)
    above = (waves > middle).astype(np.uint64)
    above[:, 0] = 0
    places = np.arange(WAVES * WAVES, dtype=np.uint64)
    colours = np.zeros((len(pictures), PATCHES, PATCHES, 3), np.uint8)
    for row, picture in zip(colours, pictures, strict=True):
        row[:] = _resized(picture, PATCHES)
    return ClipHash((above << places).sum(1, dtype=np.uint64), colours)


def _resized(picture: NDArray[Any], side: int) -> NDArray[Any]:
    from PIL import Image

    square = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(square.resize((side, side), Image.Resampling.BOX))


def _brightness(frame: Frames) -> NDArray[np.floating[Any]]:
    """Return the brightness ``[SIDE, SIDE]`` of a picture ``[H, W, 3]``."""
    return _resized((frame @ np.array(LUMA, np.float32)).astype(np.float32), SIDE)


def bit_distance(one: ClipHash, other: ClipHash) -> float:
    """Mean number of bits, 0 to 64, by which two clips differ.

    Each moment is compared with the most similar one of the other clip, and the larger of both
    directions counts: a clip that shows another and then something else is not the same.

    Returns:
        Infinity if most of either clip has no detail.
    """
    if not (one.is_telling and other.is_telling):
        return float("inf")
    return float(_bit_distances(one.bits, other.bits[None])[0])


def _bit_distances(one: Bits, table: NDArray[np.uint64]) -> NDArray[np.floating[Any]]:
    """Distances ``[N]`` of a clip's bits ``[M]`` to those of others ``[N, M']``."""
    parts = [np.empty(0)]
    step = max(1, MOMENTS_AT_ONCE // (len(one) * table.shape[1]))
    for first in range(0, len(table), step):
        bits = np.bitwise_count(one[None, :, None] ^ table[first : first + step, None, :])
        parts.append(np.maximum(bits.min(2).mean(1), bits.min(1).mean(1)))
    return np.concatenate(parts)


def level_distance(one: ClipHash, other: ClipHash) -> float:
    """Difference, 0 to 255, of the patch that differs most, as a mean over moments.

    The mean colour of each moment is left out, and with it brightness and tint; moments are paired
    as in ``bit_distance``.
    """
    centred = []
    for colours in (one.colours, other.colours):
        levels = colours.astype(np.float32)
        centred.append(levels - levels.mean((1, 2), keepdims=True))
    apart = np.abs(centred[0][:, None] - centred[1][None]).max((2, 3, 4))
    return float(max(apart.min(1).mean(), apart.min(0).mean()))


def near_pairs(train: Mapping[str, ClipHash], heldout: Mapping[str, ClipHash]) -> list[NearPair]:
    """Find training clips that look like a held-out clip.

    Args:
        train: hash of each training clip by its name.
        heldout: hash of each held-out clip by its name.

    Returns:
        The nearest held-out clip of each training clip that has one within ``NEAR_BITS`` and
        ``NEAR_LEVELS``, in the order of ``train``.
    """
    # Clips with as many moments are compared in one step.
    by_count: dict[int, list[str]] = defaultdict(list)
    for name, hashed in train.items():
        if hashed.is_telling:
            by_count[len(hashed.bits)].append(name)
    tables = []
    for names in by_count.values():
        tables.append((names, np.stack([train[name].bits for name in names])))
    nearest: dict[str, NearPair] = {}
    for name, hashed in heldout.items():
        if not hashed.is_telling:
            continue
        for names, table in tables:
            distances = _bit_distances(hashed.bits, table)
            for index in np.flatnonzero(distances <= NEAR_BITS):
                levels = level_distance(hashed, train[names[index]])
                pair = NearPair(names[index], name, float(distances[index]), levels)
                known = nearest.get(pair.train)
                nearer = known is None or (pair.bits, pair.levels) < (known.bits, known.levels)
                if levels <= NEAR_LEVELS and nearer:
                    nearest[pair.train] = pair
    return [nearest[name] for name in train if name in nearest]


def near_training_clips(indices: Iterable[Mapping[str, Any]]) -> dict[str, NearPair]:
    """Find training clips that look like held-out clips, in the indices of all shards.

    Returns:
        Pairs by the key of the training clip.
    """
    train: dict[str, ClipHash] = {}
    heldout: dict[str, ClipHash] = {}
    for index in indices:
        side = train if index["split"] == "train" else heldout
        side |= {key: ClipHash.from_text(text) for key, text in index["looks"].items()}
    return {pair.train: pair for pair in near_pairs(train, heldout)}


def without(
    path: Path, index: dict[str, Any], left_out: Mapping[str, NearPair], members: Set[str]
) -> dict[str, Any]:
    """Return the index that a shard has when some of its clips are rejected as near duplicates.

    Args:
        path: the shard.
        index: its index.
        left_out: pairs by the key of the clip that is rejected.
        members: suffixes of the members that every sample has.
    """
    looks = {key: text for key, text in index["looks"].items() if key not in left_out}
    if len(looks) == len(index["looks"]):
        return index
    rejects, loudness = [*index["rejects"]], {**index["loudness"]}
    for sample in read_tar(path, index, members):
        if pair := left_out.get(sample["__key__"]):
            info = json.loads(sample["json"])
            begin, detail = float(info["cut"] * info["seconds"]), f"like held-out {pair.heldout}"
            rejects.append(asdict(Reject(info["name"], begin, "near duplicate", detail)))
            if info["loudness"] in loudness:
                loudness[info["loudness"]] -= 1
    count = index["n"] - len(index["looks"]) + len(looks)
    return {**index, "n": count, "looks": looks, "rejects": rejects, "loudness": loudness}
