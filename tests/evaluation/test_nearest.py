"""Memorisation: copies of training clips are found, also when degraded.

New clips are as far as new clips are.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from omniforcing.core.pair import Media, Pair
from omniforcing.evaluation.nearest import (
    NearestNeighbours,
    TrainingClips,
    clip_descriptor,
    memorisation,
    stack,
    threshold,
)
from omniforcing.pocket.observe import Clips
from omniforcing.pocket.synthetic import make_clip

pytestmark = pytest.mark.extended

Score = Callable[[Iterable[Media]], tuple[dict[str, float], NearestNeighbours]]
SECONDS, TRAINED, HELDOUT, COPIED = 2, 160, 24, range(0, 160, 8)


def media(seed: int, index: int) -> Media:
    made = make_clip(seed, index, SECONDS, 64, 64)
    return Pair(made.frames, made.samples)


def read(chosen: Iterable[int] = range(TRAINED)) -> Iterator[Media]:
    return (media(51, i) for i in range(TRAINED) if i in chosen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "train"


@pytest.fixture(scope="module")
def training(folder: Path) -> TrainingClips:
    return TrainingClips.collect(Clips([""] * TRAINED, read), folder)


@pytest.fixture(scope="module")
def score(training: TrainingClips) -> Score:
    """The figures of clips, against held-out ones."""
    heldout = training.nearest(stack([clip_descriptor(media(52, i)) for i in range(HELDOUT)]))

    def of(clips: Iterable[Media]) -> tuple[dict[str, float], NearestNeighbours]:
        found = training.nearest(stack([clip_descriptor(clip) for clip in clips]))
        return memorisation(found, heldout), found

    return of


def degraded(clip: Media) -> Media:
    """Blurred in space and time, with grain and hiss: worse than what a codec does."""
    rng = np.random.default_rng(0)
    soft = gaussian_filter(clip.video.astype(np.float32), (0.7, 1.5, 1.5, 0)) + rng.normal(
        0, 6, clip.video.shape
    )
    return Pair(
        soft.clip(0, 255).astype(np.uint8),
        clip.audio + rng.normal(0, 0.003, clip.audio.shape).astype(np.float32),
    )


@pytest.mark.parametrize("change", [lambda clip: clip, degraded], ids=["exact", "degraded"])
def test_copies_of_training_clips_are_memorised_and_their_originals_found(
    score: Score, change: Callable[[Media], Media]
) -> None:
    metrics, found = score(map(change, read(COPIED)))
    assert found.index.tolist() == list(COPIED)
    assert metrics["memorised_share"] == 1 and metrics["nearest_train"] < 0.5


def test_new_clips_are_not_memorised_and_as_far_as_heldout_ones(score: Score) -> None:
    metrics, _ = score(media(53, i) for i in range(40))
    assert (
        metrics["memorised_share"] <= 0.1
    )  # by definition 1 in 25 are nearer than all 24 that were held out
    assert metrics["nearest_train"] == pytest.approx(1, abs=0.15)


def test_copies_among_new_clips_are_counted(score: Score) -> None:
    metrics, _ = score([*read(range(3)), *(media(53, i) for i in range(9))])
    assert 3 / 12 <= metrics["memorised_share"] <= 4 / 12


def test_a_training_picture_with_the_sound_of_a_new_clip_is_no_copy(score: Score) -> None:
    mixed = [
        Pair(clip.video, media(53, i).audio) for i, clip in zip(COPIED, read(COPIED), strict=True)
    ]
    assert score(mixed)[0]["memorised_share"] <= 0.1


@pytest.mark.parametrize(
    ("shares", "expected"), [([0.9, 0.7], 0.5), ([0.9, 0.3], 0.3)], ids=["half", "the least"]
)
def test_copies_are_nearer_than_half_and_than_every_heldout_clip(
    shares: list[float], expected: float
) -> None:
    some = np.array(shares)
    assert threshold(NearestNeighbours(some, some.astype(np.int64), some)) == expected


def test_the_still_background_does_not_count_and_motion_does() -> None:
    clip, darker = media(51, 0), media(51, 0)
    darker = Pair((clip.video // 4 * 4 - 20).clip(0).astype(np.uint8), clip.audio)
    frozen = Pair(np.repeat(clip.video[:1], len(clip.video), 0), clip.audio)
    here, there, still = (clip_descriptor(each).video for each in (clip, darker, frozen))
    assert np.linalg.norm(here - there) < 0.1 * np.linalg.norm(here)
    assert not still.any()


def test_clips_of_any_size_give_one_descriptor() -> None:
    small, wide = (
        clip_descriptor(Pair(made.frames, made.samples))
        for made in (make_clip(0, 0, 3, 64, h) for h in (64, 96))
    )
    assert small.video.shape == wide.video.shape == (6 * 3 * 8 * 8 * 3,)
    assert small.audio.shape == wide.audio.shape == (6 * 3 * 16,)


def test_training_clips_are_read_once(training: TrainingClips, folder: Path) -> None:
    def unreachable() -> Iterator[Media]:
        raise AssertionError("described clips were read again")

    again = TrainingClips.collect(Clips(training.clips.captions, unreachable), folder)
    assert np.array_equal(again.rows, training.rows) and again.unit == training.unit


def test_one_training_clip_is_enough(tmp_path: Path) -> None:
    one = TrainingClips.collect(Clips([""], lambda: iter([media(51, 0)])), tmp_path / "train")
    found = one.nearest(stack([clip_descriptor(media(52, i)) for i in range(2)]))
    assert memorisation(found, found) == {"nearest_train": 1.0, "memorised_share": 0.0}


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_picture_is_averaged_as_if_all_of_it_were_in_memory(seconds: int) -> None:
    clip = make_clip(51, 0, seconds, 64, 96)
    frames = torch.from_numpy(clip.frames).permute(3, 0, 1, 2).double() / 255
    cells = torch.nn.functional.adaptive_avg_pool3d(frames, (6 * seconds, 8, 8))
    whole = (cells - cells.median(1, keepdim=True).values).flatten().numpy()
    assert np.allclose(
        clip_descriptor(Pair(clip.frames, clip.samples)).video, whole, rtol=0, atol=1e-6
    )
