"""The same clip twice is found: by its bytes, and by its looks where it was encoded again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omniforcing.core.pair import Pair
from omniforcing.data.duplicates import (
    NEAR_BITS,
    ClipHash,
    Frames,
    bit_distance,
    clip_hash,
    copies,
    near_pairs,
)
from omniforcing.media.files import encode_mp4, read_mp4
from omniforcing.pocket.synthetic import SyntheticClip, make_clip

TRAIN, HELDOUT = 12, 4


@pytest.fixture(scope="module")
def clips() -> list[SyntheticClip]:
    return [make_clip(3, index, 2, 64, 64) for index in range(TRAIN + HELDOUT)]


def again(clip: SyntheticClip, how: str) -> Frames:
    """Another version of a clip's picture."""
    if how == "encoded":
        return read_mp4(encode_mp4(Pair(clip.frames, clip.samples), 30)).video
    if how == "brighter":
        return np.clip(clip.frames * 1.15 + 8, 0, 255).astype(np.uint8)
    if how == "larger":
        pictures = [Image.fromarray(frame).resize((160, 96)) for frame in clip.frames]
        return np.stack([np.asarray(picture) for picture in pictures])
    assert how == "noisy"
    noise = np.random.default_rng(0).normal(0, 5, clip.frames.shape)
    return np.clip(clip.frames + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("how", ["encoded", "brighter", "larger", "noisy"])
def test_a_held_out_clip_that_is_a_training_clip_in_another_form_is_found(
    clips: list[SyntheticClip], how: str
) -> None:
    train = {f"{index}": clip_hash(clips[index].frames) for index in range(TRAIN)}
    heldout = {f"{index}": clip_hash(clips[index].frames) for index in range(TRAIN, len(clips))}
    assert near_pairs(train, heldout) == []
    [pair] = near_pairs(train, {**heldout, "again": clip_hash(again(clips[5], how))})
    assert (pair.heldout, pair.train) == ("again", "5") and pair.bits <= NEAR_BITS


def test_each_training_clip_is_told_with_the_held_out_clip_that_is_nearest(
    clips: list[SyntheticClip],
) -> None:
    train = {how: clip_hash(again(clips[5], how)) for how in ("encoded", "noisy")}
    train["other"] = clip_hash(clips[4].frames)
    heldout = {"far": clip_hash(again(clips[5], "brighter")), "own": clip_hash(clips[5].frames)}
    found = near_pairs(train, {**heldout, "also own": heldout["own"]})
    assert [pair.train for pair in found] == ["encoded", "noisy"]
    for pair in found:
        least = min(bit_distance(train[pair.train], hashed) for hashed in heldout.values())
        assert pair.bits == least and pair.heldout != "also own"


def test_clips_without_detail_are_like_no_other() -> None:
    black = clip_hash(np.zeros((25, 32, 32, 3), np.uint8))
    assert not black.is_telling and len(black.bits) == 0
    assert near_pairs({"a": black}, {"b": black}) == []
    assert bit_distance(black, black) == float("inf")


def test_a_clip_of_fewer_frames_than_moments_is_hashed(clips: list[SyntheticClip]) -> None:
    short = clip_hash(clips[0].frames[:5])
    assert len(short.bits) == 5 and bit_distance(short, short) == 0
    [pair] = near_pairs({"a": short, "b": clip_hash(clips[1].frames)}, {"c": short})
    assert (pair.train, pair.bits, pair.levels) == ("a", 0.0, 0.0)


def test_a_hash_survives_json(clips: list[SyntheticClip]) -> None:
    for frames in (clips[0].frames, np.zeros((9, 32, 32, 3), np.uint8)):
        hashed = clip_hash(frames)
        read = ClipHash.from_text(hashed.to_text())
        assert np.array_equal(read.bits, hashed.bits)
        assert np.array_equal(read.colours, hashed.colours)


def test_copies_name_the_shortest_name_and_same_size_alone_is_no_copy(tmp_path: Path) -> None:
    contents = {"a.mp4": b"one", "a (1).mp4": b"one", "deep/a.mp4": b"one", "b.mp4": b"two"}
    empty = {"e.mp4": b"", "f.mp4": b""}
    for name, content in {**contents, **empty}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = copies(tmp_path, [*contents, *empty, "gone.mp4"])
    assert found == {"a (1).mp4": "a.mp4", "deep/a.mp4": "a.mp4"}
