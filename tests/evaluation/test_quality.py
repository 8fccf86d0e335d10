"""Frechet distances: zero for the same set, growing with distortion, in named features that tell
motion from stillness.
"""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from omniforcing.evaluation.quality import FEATURES, audio_features, floor, frechet, video_features
from omniforcing.pocket.synthetic import SyntheticClip, make_clip

pytestmark = pytest.mark.extended

CLIPS, SECONDS = 16, 2


@pytest.fixture(scope="module")
def clips() -> list[SyntheticClip]:
    return [make_clip(21, index, SECONDS, 64, 64) for index in range(CLIPS)]


@pytest.fixture(scope="module")
def video(clips: list[SyntheticClip]) -> np.ndarray:
    return np.concatenate([video_features(clip.frames) for clip in clips])


@pytest.fixture(scope="module")
def audio(clips: list[SyntheticClip]) -> np.ndarray:
    return np.concatenate([audio_features(clip.samples) for clip in clips])


def test_features_have_the_size_their_name_says(video: np.ndarray, audio: np.ndarray) -> None:
    assert video.shape == (CLIPS * SECONDS, int(FEATURES["video"].split("-")[2]))
    assert audio.shape == (CLIPS * SECONDS, int(FEATURES["audio"].split("-")[3]))


def test_the_distance_of_a_set_to_itself_is_zero_in_any_order(
    video: np.ndarray, audio: np.ndarray
) -> None:
    for features in (video, audio):
        assert frechet(features, features) == pytest.approx(0, abs=1e-9)
        assert frechet(features[::-1], features) == pytest.approx(0, abs=1e-9)


def test_other_real_clips_are_nearer_than_any_distortion(
    clips: list[SyntheticClip], video: np.ndarray
) -> None:
    others = np.concatenate(
        [video_features(make_clip(22, index, SECONDS, 64, 64).frames) for index in range(CLIPS)]
    )
    soft = [gaussian_filter(clip.frames.astype(np.float32), (0, 2, 2, 0)) for clip in clips]
    assert frechet(others, video) < frechet(
        np.concatenate([video_features(frames) for frames in soft]), video
    )


def test_the_video_distance_grows_with_noise(clips: list[SyntheticClip], video: np.ndarray) -> None:
    rng = np.random.default_rng(0)

    def noisy(level: float) -> list[np.ndarray]:
        return [
            (clip.frames + rng.normal(0, level, clip.frames.shape)).clip(0, 255).astype(np.uint8)
            for clip in clips
        ]

    found = [
        frechet(np.concatenate([video_features(frames) for frames in noisy(level)]), video)
        for level in (0, 4, 8, 16, 32)
    ]
    assert found == sorted(found) and found[1] > found[0] + 0.01


def test_the_audio_distance_grows_with_noise_and_sees_silence(
    clips: list[SyntheticClip], audio: np.ndarray
) -> None:
    rng = np.random.default_rng(0)

    def distance(change: Callable[[np.ndarray], np.ndarray]) -> float:
        return frechet(
            np.concatenate([audio_features(change(clip.samples)) for clip in clips]), audio
        )

    def hiss(level: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda samples: samples + rng.normal(0, level, samples.shape)

    found = [distance(hiss(level)) for level in (0.003, 0.01, 0.03, 0.1)]
    assert found == sorted(found) and found[0] > 0.01
    assert distance(lambda s: 0 * s) > 10 * floor(audio, CLIPS, CLIPS)


def test_sound_below_hearing_is_no_distortion(
    clips: list[SyntheticClip], audio: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    hiss = [
        audio_features(clip.samples + rng.normal(0, 1e-4, clip.samples.shape)) for clip in clips
    ]
    assert frechet(np.concatenate(hiss), audio) < 0.1


def test_a_frozen_picture_is_far_from_a_moving_one(
    clips: list[SyntheticClip], video: np.ndarray
) -> None:
    frozen = [video_features(np.repeat(clip.frames[:1], len(clip.frames), 0)) for clip in clips]
    assert frechet(np.concatenate(frozen), video) > 5 * floor(video, CLIPS, CLIPS)


def test_known_gaussians_give_the_known_distance() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (20000, 4)), rng.normal(0, 2, (20000, 4)) + 1
    # |mean|^2 + sum (sigma - sigma')^2, over the reference's total variance of 4
    assert frechet(b, a) == pytest.approx((4 * 1 + 4 * 1) / 4, rel=0.03)


def test_fewer_samples_than_dimensions_stay_finite(video: np.ndarray) -> None:
    assert all(np.isfinite(frechet(video[:n], video[n : 2 * n])) for n in (1, 2, 4))
    assert all(np.isfinite(floor(video[: n * SECONDS], n, 4)) for n in (2, 3))


def test_the_floor_is_what_sets_of_the_same_kind_are_apart() -> None:
    rng = np.random.default_rng(3)

    def draw(clips: int) -> np.ndarray:  # two seconds each, nearly alike
        return np.repeat(rng.normal(size=(clips, 1, 16)), 2, 1).reshape(-1, 16) + 0.1 * rng.normal(
            size=(2 * clips, 16)
        )

    for clips, others in ((64, 64), (64, 128), (128, 32)):
        expected = np.mean([frechet(draw(others), draw(clips)) for _ in range(30)])
        assert np.mean([floor(draw(clips), clips, others) for _ in range(10)]) == pytest.approx(
            expected, rel=0.2
        )


def test_a_reference_without_variance_gives_a_large_and_finite_distance(video: np.ndarray) -> None:
    alike = np.repeat(video[:1], 4, 0)
    assert frechet(alike, alike) == 0
    assert 10 < frechet(video, alike) < np.inf


def test_larger_pictures_share_the_features_scale() -> None:
    small, large = (video_features(make_clip(21, 0, 1, side, side).frames) for side in (64, 128))
    assert np.abs(small - large).max() < 0.25 * np.abs(small).max()
