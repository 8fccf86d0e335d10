"""The sync score: one-to-one, order-free, high on real clips, at chance for cheats, falling with a
shift of the sound.
"""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniforcing.pocket.events import detect_audio_events, detect_video_events
from omniforcing.pocket.sync import match, score_sync, score_windows
from omniforcing.pocket.synthetic import SyntheticClip, make_clip
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

Timed = list[tuple[list[float], list[float]]]
CLIPS, SECONDS = 24, 4
times = st.lists(st.floats(0, 4, allow_nan=False), max_size=7)


@pytest.fixture(scope="module")
def clips() -> list[SyntheticClip]:
    return [make_clip(5, index, SECONDS, 64, 64) for index in range(CLIPS)]


@pytest.fixture(scope="module")
def seen(clips: list[SyntheticClip]) -> list[list[float]]:
    return [detect_video_events(clip.frames).impacts for clip in clips]


@pytest.fixture(scope="module")
def heard(clips: list[SyntheticClip]) -> list[list[float]]:
    return [detect_audio_events(clip.samples).impacts for clip in clips]


def delayed(clip: SyntheticClip, milliseconds: int) -> np.ndarray:
    shift = 16 * milliseconds
    return np.pad(clip.samples, ((0, 0), (shift, 0)))[:, : clip.samples.shape[1]]


def test_real_clips_are_in_sync(seen: list[list[float]], heard: list[list[float]]) -> None:
    sync = score_sync(seen, heard)
    assert sync.pooled.f1 >= 0.98
    assert sync.pooled.margin > 0.6 and sync.pooled.margin_error < 0.05
    assert sync.offset_ms is not None and sync.offset_signed_ms is not None
    assert sync.offset_ms < 5 and abs(sync.offset_signed_ms) < 2


def test_another_clips_sound_is_at_chance(
    seen: list[list[float]], heard: list[list[float]]
) -> None:
    sync = score_sync(seen, heard[1:] + heard[:1])
    assert abs(sync.pooled.margin) < 3 * sync.pooled.margin_error
    assert sync.pooled.f1 < 0.4


def test_delaying_the_sound_lowers_the_margin_in_step_and_shows_in_the_offset(
    clips: list[SyntheticClip], seen: list[list[float]]
) -> None:
    delays = (0, 40, 80, 160)
    found = [
        score_sync(seen, [detect_audio_events(delayed(clip, delay)).impacts for clip in clips])
        for delay in delays
    ]
    none, forty, eighty, more = found
    assert none.pooled.margin > forty.pooled.margin > eighty.pooled.margin > more.pooled.margin
    assert (
        none.strict.margin - forty.strict.margin > 0.3
    )  # half the tolerance feels what the whole one forgives
    assert eighty.pooled.margin < 0.5 * none.pooled.margin and more.pooled.margin < 0
    assert forty.offset_signed_ms is not None and none.offset_signed_ms is not None
    assert forty.offset_signed_ms - none.offset_signed_ms == pytest.approx(40, abs=2)
    assert forty.offset_ms == pytest.approx(40, abs=3)


def test_sound_ahead_of_the_picture_has_a_negative_offset(seen: list[list[float]]) -> None:
    sync = score_sync(seen, [[time - 0.03 for time in times] for times in seen])
    assert sync.offset_signed_ms == pytest.approx(-30) and sync.offset_ms == pytest.approx(30)


@pytest.mark.parametrize(
    "cheat",
    [
        pytest.param(
            lambda clip: (np.repeat(clip.frames[:1], 97, 0), clip.samples), id="a frozen ball"
        ),
        pytest.param(lambda clip: (clip.frames, 0 * clip.samples), id="silence"),
        pytest.param(
            lambda clip: (clip.frames, np.random.default_rng(0).normal(0, 0.2, (2, 64000))),
            id="noise as sound",
        ),
        pytest.param(
            lambda clip: (
                np.random.default_rng(1).integers(0, 255, (97, 64, 64, 3), np.uint8),
                clip.samples,
            ),
            id="noise as picture",
        ),
    ],
)
def test_cheats_without_events_score_nothing(
    clips: list[SyntheticClip], cheat: Callable[[SyntheticClip], tuple[np.ndarray, np.ndarray]]
) -> None:
    pairs = [cheat(clip) for clip in clips[:8]]
    sync = score_sync(
        [detect_video_events(frames).impacts for frames, _ in pairs],
        [detect_audio_events(samples).impacts for _, samples in pairs],
    )
    assert abs(sync.pooled.margin) < 0.05 and sync.pooled.f1 < 0.3


@pytest.mark.parametrize("period", [0.3, 0.5, 0.8])
def test_a_metronome_scores_near_chance(seen: list[list[float]], period: float) -> None:
    ticks = np.arange(0.2, 3.9, period).tolist()
    sync = score_sync(seen, [ticks] * len(seen))
    assert sync.pooled.margin == pytest.approx(
        0, abs=1e-9
    )  # every clip has the same sound, so shuffling changes nothing


def test_a_model_that_always_makes_the_same_clip_has_no_margin(
    seen: list[list[float]], heard: list[list[float]]
) -> None:
    sync = score_sync(seen[:1] * 8, heard[:1] * 8)
    assert sync.pooled.f1 == 1 and sync.pooled.margin == 0


def test_double_events_do_not_count_double() -> None:
    sync = score_sync([[1.0], [2.0]], [[1.0, 1.02, 0.98], [2.0, 2.01]])
    assert sync.precision == pytest.approx(2 / 5) and sync.recall == 1
    assert sync.pooled.f1 == pytest.approx(2 * 2 / 7)
    assert sync.offsets_ms == pytest.approx([0, 0])


def test_matching_prefers_more_pairs_then_less_offset() -> None:
    assert match([0.0, 0.07], [0.06, 0.14], 0.08) == [(0, 0), (1, 1)]
    assert match([1.0], [0.95, 1.01], 0.08) == [(0, 1)]
    assert match([1.0], [1.08], 0.08) == [(0, 0)]
    assert match([1.0], [1.081], 0.08) == []


@given(times, times)
def test_matching_is_one_to_one_within_tolerance_and_symmetric(
    a: list[float], b: list[float]
) -> None:
    pairs = match(a, b, 0.08)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(abs(a[i] - b[j]) <= 0.08 + 1e-6 for i, j in pairs)
    assert len(pairs) == len(match(b, a, 0.08))


@settings(max_examples=30)
@given(st.lists(st.tuples(times, times), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_score_depends_on_no_order(clips: Timed, random: Random) -> None:
    def score(pairs: Timed) -> tuple[float, ...]:
        sync = score_sync([s for s, _ in pairs], [h for _, h in pairs])
        return (
            sync.pooled.f1,
            sync.pooled.shuffled_f1,
            sync.pooled.margin_error,
            sync.offset_ms or 0,
        )

    mixed = [(random.sample(s, len(s)), random.sample(h, len(h))) for s, h in clips]
    random.shuffle(mixed)
    assert score(mixed) == pytest.approx(score(clips), abs=1e-6)


@settings(max_examples=30)
@given(st.lists(st.tuples(times, times), min_size=2, max_size=4))
def test_windows_add_up_to_the_whole(clips: Timed) -> None:
    seen, heard = [s for s, _ in clips], [h for _, h in clips]
    (whole,) = score_windows(seen, heard, 0.08)
    (single,) = score_windows(seen, heard, 0.08, [0.0, 4.01])
    assert single == whole
    events = [
        sum(low <= t < high for s, h in clips for t in [*s, *h])
        for low, high in ((0, 2), (2, 4.01))
    ]
    halves = score_windows(seen, heard, 0.08, [0.0, 2.0, 4.01])
    if sum(events):
        assert sum(h.f1 * n for h, n in zip(halves, events, strict=True)) / sum(
            events
        ) == pytest.approx(whole.f1)


def test_the_standard_error_is_that_of_resampled_clips() -> None:
    rng = np.random.default_rng(0)
    margins, errors = [], []
    for _ in range(100):
        seen = [sorted(rng.uniform(0, 4, 5)) for _ in range(20)]
        heard = [s if rng.random() < 0.5 else sorted(rng.uniform(0, 4, 5)) for s in seen]
        (pooled,) = score_windows(seen, heard, 0.08)
        margins.append(pooled.margin)
        errors.append(pooled.margin_error)
    assert np.mean(errors) == pytest.approx(np.std(margins), rel=0.25)


def test_one_clip_cannot_be_scored() -> None:
    with refuses("data.too-few-clips", "1 clip", "evaluate.clips"):
        score_sync([[1.0]], [[1.0]])
