"""The detectors against the truth of real, blurred and cheating clips."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from omniforcing.pocket.events import EDGE, colours_in, detect_audio_events, detect_video_events
from omniforcing.pocket.synthetic import COLOURS, SyntheticClip, make_clip

SECONDS = 4


@pytest.fixture(scope="module")
def clips() -> list[SyntheticClip]:
    return [make_clip(11, index, SECONDS, 64, 64) for index in range(12)]


def truth(clip: SyntheticClip) -> list[float]:
    return [time for time in clip.impacts if EDGE <= time <= SECONDS - EDGE]


def blurred(frames: np.ndarray, space: float, time: float = 0.0) -> np.ndarray:
    return (
        gaussian_filter(frames.astype(np.float32), (time, space, space, 0)).round().astype(np.uint8)
    )


def test_every_impact_of_a_real_clip_is_seen_within_a_quarter_of_a_frame(
    clips: list[SyntheticClip],
) -> None:
    for clip in clips:
        np.testing.assert_allclose(
            detect_video_events(clip.frames).impacts, truth(clip), atol=0.25 / 24
        )


def test_every_impact_of_a_real_clip_is_heard_within_one_envelope_frame(
    clips: list[SyntheticClip],
) -> None:
    for clip in clips:
        np.testing.assert_allclose(
            detect_audio_events(clip.samples).impacts, truth(clip), atol=0.005
        )


def test_real_clips_show_their_ball_in_every_frame_and_their_colour_and_sound_its_tone(
    clips: list[SyntheticClip],
) -> None:
    for clip in clips:
        seen, heard = detect_video_events(clip.frames), detect_audio_events(clip.samples)
        assert all(seen.present) and len(seen.present) == len(clip.frames)
        assert seen.colours == [clip.colour]
        assert set(heard.colours) == {clip.colour}


@pytest.mark.parametrize(("space", "time"), [(2.0, 0.0), (4.0, 0.0), (1.0, 2.0)])
def test_soft_reconstructions_lose_no_impact(
    clips: list[SyntheticClip], space: float, time: float
) -> None:
    for clip in clips[:6]:
        seen = detect_video_events(blurred(clip.frames, space, time))
        np.testing.assert_allclose(seen.impacts, truth(clip), atol=1 / 24)
        assert seen.colours == [clip.colour] and np.mean(seen.present) > 0.99


def test_larger_pictures_are_judged_by_their_height() -> None:
    clip = make_clip(11, 1, 2, 96, 128)
    np.testing.assert_allclose(
        detect_video_events(clip.frames).impacts,
        [t for t in clip.impacts if EDGE <= t <= 2 - EDGE],
        atol=0.25 / 24,
    )


def test_two_balls_are_tracked_by_their_hues() -> None:
    clip = make_clip(11, 0, SECONDS, 64, 128, balls=2)
    seen = detect_video_events(clip.frames, balls=2)
    found = [time for time in truth(clip) if np.min(np.abs(np.array(seen.impacts) - time)) < 0.05]
    assert sorted(seen.colours) == sorted(clip.colours)
    assert len(found) >= 0.8 * len(truth(clip))  # where the balls cross, one hides the other


def test_a_frozen_ball_has_no_impacts(clips: list[SyntheticClip]) -> None:
    seen = detect_video_events(np.repeat(clips[0].frames[:1], 97, 0))
    assert seen.impacts == [] and all(seen.present)


def test_an_apex_is_no_impact() -> None:
    times = np.arange(97) / 24
    frames = np.full((97, 64, 64, 3), 150, np.uint8)
    rows, columns = np.mgrid[:64, :64]
    for frame, y in zip(
        frames, 40 - 30 * times * (2 - times), strict=True
    ):  # up, apex at 1 s, down and out
        frame[(rows - y) ** 2 + (columns - 32) ** 2 < 49] = COLOURS["red"][0]
    assert detect_video_events(frames).impacts == []


def test_an_empty_picture_and_coloured_noise_show_no_ball() -> None:
    empty = detect_video_events(np.full((49, 64, 64, 3), 128, np.uint8))
    noise = detect_video_events(
        np.random.default_rng(0).integers(0, 255, (49, 64, 64, 3), np.uint8)
    )
    assert empty.impacts == [] and not any(empty.present) and empty.colours == []
    assert not any(noise.present)


def test_a_speck_has_no_colour() -> None:
    frames = np.full((25, 64, 64, 3), 128, np.uint8)
    frames[:, 30:33, 30:33] = COLOURS["red"][0]
    assert detect_video_events(frames).colours == []


def test_silence_and_steady_noise_have_no_impacts() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, (2, 64000))
    assert detect_audio_events(np.zeros((2, 64000))).impacts == []
    assert detect_audio_events(noise).impacts == []


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tone_is_named_by_its_nearest_colour_even_when_detuned(colour: str) -> None:
    time = np.arange(32000) / 16000
    sound = np.where(
        time > 1,
        np.exp(-(time - 1) / 0.08) * np.sin(2 * np.pi * COLOURS[colour][1] * 1.1 * time),
        0,
    )
    assert detect_audio_events(0.3 * np.stack([sound, sound])).colours == [colour]


def test_captions_name_their_colours() -> None:
    assert colours_in(
        "a red ball bounces high on the floor and a Blue ball bounces between the walls"
    ) == ["red", "blue"]
    assert colours_in("a dog barks at a red car, reddish light") == []
