"""The pocket world shows and sounds every impact at its true time."""

import time

import numpy as np
import pytest

from omniforcing.pocket.synthetic import COLOURS, MODES, make_clip
from tests.support.refusals import refuses


def centroid(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of the coloured pixels of each frame, x and y in pixels."""
    colour = frames.max(-1).astype(float) - frames.min(-1)
    rows, columns = np.arange(frames.shape[1]) + 0.5, np.arange(frames.shape[2]) + 0.5
    total = colour.sum((1, 2))
    return (colour.sum(1) @ columns) / total, (colour.sum(2) @ rows) / total


def seen_impact(position: np.ndarray, near: float) -> float:
    """Where the straight lines before and after the frame gap at ``near`` seconds cross."""
    last = int(np.floor(near * 24))
    before, after = np.arange(last - 1, last + 1), np.arange(last + 1, last + 3)
    (a, b), (c, d) = (np.polyfit(frames / 24, position[frames], 1) for frames in (before, after))
    return (d - b) / (a - c)


def test_same_seed_and_index_give_the_same_clip_and_others_do_not() -> None:
    one, same, other = (
        make_clip(3, 7, 2, 64, 64),
        make_clip(3, 7, 2, 64, 64),
        make_clip(3, 8, 2, 64, 64),
    )
    assert (
        (one.frames == same.frames).all()
        and (one.samples == same.samples).all()
        and one.caption == same.caption
    )
    assert (one.frames != other.frames).any()


def test_shapes_are_those_of_a_clip() -> None:
    clip = make_clip(0, 0, 3, 64, 96)
    assert clip.frames.shape == (73, 64, 96, 3) and clip.frames.dtype == np.uint8
    assert clip.samples.shape == (2, 48000) and clip.samples.dtype == np.float32
    assert np.abs(clip.samples).max() < 1


@pytest.mark.extended
def test_every_impact_is_seen_at_its_time() -> None:
    for index in range(30):
        clip = make_clip(1, index, 4, 64, 64)
        position = centroid(clip.frames)[0 if clip.mode == "walls" else 1]
        inside = [t for t in clip.impacts if 0.1 < t < 3.85]
        assert len(inside) >= 3
        np.testing.assert_allclose(
            [seen_impact(position, t) for t in inside], inside, atol=0.5 / 24
        )


def test_every_impact_is_heard_at_its_time() -> None:
    for index in range(30):
        clip = make_clip(1, index, 4, 64, 64)
        first = int(np.ceil(clip.impacts[0] * 16000))
        assert not clip.samples[:, :first].any() and clip.samples[:, first].any()
        power = np.square(clip.samples).mean(0)
        for impact in clip.impacts[1:]:
            at = int(np.ceil(impact * 16000))
            assert power[at : at + 160].sum() > 100 * power[at - 160 : at].sum()


def test_pitch_follows_the_colour_and_the_caption_names_both() -> None:
    seen = set()
    for index in range(60):
        clip = make_clip(2, index, 2, 64, 64)
        at = int(clip.impacts[0] * 16000) + 64
        tone = clip.samples.mean(0)[at : at + 1600]
        spectrum = np.abs(np.fft.rfft(tone * np.hanning(len(tone)), 16000))
        if len(tone) == 1600:
            assert spectrum.argmax() == pytest.approx(COLOURS[clip.colour][1], abs=8)
        assert clip.caption == f"a {clip.colour} ball bounces {MODES[clip.mode].caption}"
        seen.add(clip.caption)
    assert len(seen) == 12


def test_several_balls_have_different_colours_and_share_the_impacts() -> None:
    clip = make_clip(0, 1, 4, 64, 64, balls=3)
    assert len(set(clip.colours)) == 3 and clip.caption.count("ball bounces") == 3
    assert clip.impacts == sorted(clip.impacts) and len(clip.impacts) > 8


def test_impossible_worlds_are_refused() -> None:
    with refuses("config.out-of-range", "1 to 4 balls", "5"):
        make_clip(0, 0, 4, 64, 64, balls=5)
    with refuses("config.out-of-range", "clips.seconds"):
        make_clip(0, 0, 0, 64, 64)


def test_rendering_takes_milliseconds() -> None:
    make_clip(0, 0, 4, 64, 64)
    began = time.process_time()
    for index in range(10):
        make_clip(0, index, 4, 64, 64)
    assert (time.process_time() - began) / 10 < 0.1
