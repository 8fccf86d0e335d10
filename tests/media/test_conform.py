"""Any file becomes clips of one form, with picture and sound where they were."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniforcing.core.pair import Pair
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import ClipCutter
from omniforcing.media.reading.pictures import PictureReader
from omniforcing.media.reading.probe import probe
from omniforcing.media.reading.tracks import Rejected
from tests.support.videos import MakeVideo

pytestmark = pytest.mark.extended

EVENTS = (0.5, 1.25)
FORM = ClipFormat(64, 64, 2)


def flashes(frames: np.ndarray) -> np.ndarray:
    """Times of the first frame of each flash."""
    white = frames.mean((1, 2, 3)) > 200
    return np.flatnonzero(white & ~np.r_[False, white[:-1]]) / 24


def clicks(samples: np.ndarray) -> np.ndarray:
    """Times where the sound jumps up."""
    loud = np.abs(samples).max(0) > 0.2
    quiet_before = np.array([not loud[max(0, i - 800) : i].any() for i in np.flatnonzero(loud)])
    return np.flatnonzero(loud)[quiet_before] / 16000


def assert_in_time(
    media: Pair[np.ndarray], events: Sequence[float], frame: float = 1 / 24, sound: float = 0.001
) -> None:
    for found, within in ((flashes(media.video), frame), (clicks(media.audio), sound)):
        assert len(found) == len(events)
        np.testing.assert_allclose(found, events, atol=within + 1e-6)


@pytest.mark.parametrize("fps", [12, 24, 25, 30000 / 1001, 30, 50, 60])
def test_flash_and_click_keep_their_time_at_every_frame_rate(
    make_video: MakeVideo, fps: float
) -> None:
    media = ClipCutter(make_video("a.mp4", seconds=2.5, fps=fps, events=EVENTS), FORM).clip(0)
    assert media.video.shape == (49, 64, 64, 3) and media.video.dtype == np.uint8
    assert media.audio.shape == (2, 32000) and media.audio.dtype == np.float32
    assert_in_time(media, EVENTS)


def test_variable_frame_rate_follows_the_time_stamps(make_video: MakeVideo) -> None:
    # 60 fps, then a picture held for half a second, then 10 fps: frame numbers say nothing about
    # time.
    times = np.r_[np.arange(0, 0.75, 1 / 60), np.arange(1.25, 2.5, 0.1)]
    media = ClipCutter(make_video("vfr.mp4", seconds=2.5, times=times, events=EVENTS), FORM).clip(0)
    assert_in_time(media, EVENTS)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_click_keeps_its_time_at_every_sample_rate(make_video: MakeVideo, rate: int) -> None:
    name, codec = ("a.mkv", "flac") if rate == 8000 else ("a.mp4", "aac")
    assert_in_time(
        ClipCutter(make_video(name, seconds=2.5, rate=rate, audio=codec, events=EVENTS), FORM).clip(
            0
        ),
        EVENTS,
    )


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.ts", "a.avi"])
def test_every_container_keeps_both_streams_on_one_clock(make_video: MakeVideo, name: str) -> None:
    # MPEG-TS starts at its own time, and AVI has no time stamps: what counts is picture against
    # sound.
    codecs = {"codec": "mpeg4", "audio": "pcm_s16le"} if name == "a.avi" else {}
    media = ClipCutter(
        make_video(name, seconds=2.6, fps=25, rate=48000, events=EVENTS, **codecs), FORM
    ).clip(0)
    lag = flashes(media.video) - clicks(media.audio)
    assert len(lag) == 2 and np.abs(lag).max() <= 1 / 24 + 0.001


def test_picture_that_starts_late_is_not_moved_to_the_start_of_the_sound(
    make_video: MakeVideo,
) -> None:
    times = 0.5 + np.arange(60) / 24
    media = ClipCutter(
        make_video("late.mp4", seconds=3.2, times=times, events=(1.0, 1.75)), FORM
    ).clip(0)
    assert_in_time(media, (0.5, 1.25))


def test_sound_that_starts_late_is_not_moved_to_the_start_of_the_picture(
    make_video: MakeVideo,
) -> None:
    samples = np.zeros((2, 48000), np.float32)
    samples[:, 8000:8040] = 0.9
    path = make_video(
        "late.mkv", seconds=3.5, events=(1.0,), samples=samples, audio="flac", audio_start=0.5
    )
    cutter = ClipCutter(path, FORM)
    media = cutter.clip(0)
    assert cutter.start(0) == pytest.approx(0.5, abs=1 / 24 + 0.001)
    assert flashes(media.video) - clicks(media.audio) == pytest.approx(0, abs=1 / 24)


def test_long_video_gives_clips_that_share_their_border_frame(make_video: MakeVideo) -> None:
    cutter = ClipCutter(make_video("long.mp4", seconds=6.5, events=(0.5, 2.5, 4.5)), FORM)
    assert cutter.cuts == 3
    media = [cutter.clip(i) for i in range(3)]
    for clip in media:
        assert_in_time(clip, (0.5,))
    assert (media[0].video[-1] == media[1].video[0]).all()


def test_conformed_clip_is_left_as_it_is(make_video: MakeVideo) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 32000)).astype(np.float32)
    media = ClipCutter(
        make_video("a.mkv", seconds=49 / 24, samples=samples, audio="flac"), FORM
    ).clip(0)
    np.testing.assert_allclose(media.audio, samples, atol=1 / 32768)


def test_exactly_k_seconds_are_enough(make_video: MakeVideo) -> None:
    assert ClipCutter(make_video("exact.mp4", seconds=2.0), FORM).cuts == 1


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"seconds": 1.8}, "too short"),
        ({"seconds": 2.5, "samples": np.zeros((2, 16000), np.float32)}, "too short"),
        ({"size": (16, 16)}, "too small"),
        ({"size": (24, 200)}, "too small"),
        ({"audio": None}, "no audio track"),
        ({"video": False}, "no video track"),
    ],
)
def test_unusable_video_is_rejected_with_its_reason(
    make_video: MakeVideo, how: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Rejected) as error:
        ClipCutter(make_video("bad.mp4", **how), FORM)
    assert error.value.reason == reason


@pytest.mark.parametrize("size", [(65, 97), (33, 35), (64, 300), (240, 64)])
def test_odd_and_extreme_sizes_are_cropped_to_the_centre(
    make_video: MakeVideo, size: tuple[int, int]
) -> None:
    frame = ClipCutter(make_video("odd.mp4", size=size, pixels="yuv444p"), FORM).clip(0).video[0]
    assert frame.shape == (64, 64, 3)
    wide = size[1] > 2 * size[0]
    tall = size[0] > 2 * size[1]
    red = frame[2, 2, 0] > 150
    assert red == (not wide and not tall)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-3, 2)), (180, (-3, -3)), (270, (2, -3))])
def test_rotated_video_is_turned_upright(
    make_video: MakeVideo, rotation: int, corner: tuple[int, int]
) -> None:
    path = make_video("turned.mp4", size=(64, 128), rotation=rotation)
    cutter = ClipCutter(path, ClipFormat(128, 64, 2) if rotation % 180 else ClipFormat(64, 128, 2))
    assert (cutter.info.height, cutter.info.width) == ((128, 64) if rotation % 180 else (64, 128))
    # The red corner is top left before rotation, which counts counterclockwise.
    assert cutter.clip(0).video[0][corner][0] > 150


def test_mono_reaches_both_sides_and_surround_keeps_its_sides_without_clipping(
    make_video: MakeVideo,
) -> None:
    mono = ClipCutter(make_video("mono.mp4", layout="mono", events=EVENTS), FORM).clip(0)
    assert (mono.audio[0] == mono.audio[1]).all()
    assert_in_time(mono, EVENTS)
    samples = np.zeros((6, 96000), np.float32)  # FL FR FC LFE BL BR
    samples[0, :], samples[3, :] = 0.9, 0.9
    left = (
        ClipCutter(
            make_video("left.mkv", layout="5.1", rate=48000, samples=samples, audio="flac"), FORM
        )
        .clip(0)
        .audio
    )
    assert left[0, 8000:24000].mean() == pytest.approx(0.9 / (1 + 2 * 0.5**0.5), rel=0.01)
    assert np.abs(left[1]).max() < 1e-3
    samples[:] = 1.0
    full = (
        ClipCutter(
            make_video("full.mkv", layout="5.1", rate=48000, samples=samples, audio="flac"), FORM
        )
        .clip(0)
        .audio
    )
    assert np.abs(full[:, 8000:24000]).max() <= 1.001


def test_no_frame_is_shown_more_than_half_a_frame_early(make_video: MakeVideo) -> None:
    def shown(path: Path, wanted: Sequence[float] | np.ndarray) -> np.ndarray:
        reader = PictureReader(path, probe(path))
        return np.array([reader.at(float(time)).time for time in wanted])

    slow = make_video("slow.mkv", seconds=2, times=[0.0, 0.1, 1.0])
    found = shown(slow, [0.0, 0.04, 0.09, 0.5, 0.97, 0.99, 1.2, 0.04])
    assert found.tolist() == pytest.approx([0, 0, 0.1, 0.1, 0.1, 1, 1, 0])
    wanted = np.arange(36) / 24
    shift = shown(make_video("fast.mp4", seconds=2, fps=60), wanted) - wanted
    assert np.abs(shift).max() <= 1 / 120 + 1e-6 and abs(shift.mean()) < 0.005
