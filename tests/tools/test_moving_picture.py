"""The moving picture of README: its length, its line, and marks where impacts are."""

import numpy as np
import pytest
from PIL import ImageColor

from omniforcing.core.pair import Pair
from omniforcing.evaluation.plots import SEEN
from omniforcing.pocket.observe import observe
from omniforcing.pocket.synthetic import make_clip
from tools.moving_picture import MARK, SIDE, WIDTH, animate

pytestmark = pytest.mark.extended


def test_frames_stand_beside_a_spectrogram_with_a_line_and_marks() -> None:
    clip = make_clip(7, 0, 2, 64, 64)
    media = Pair(clip.frames, clip.samples)
    observation = observe(media, clip.caption)
    pictures = list(animate(media, observation, seconds=2.0))
    assert len(pictures) == 25  # every second frame of 49
    assert {picture.size for picture in pictures} == {(SIDE + WIDTH, SIDE)}
    # The line moves over the spectrogram from its first column to its last.
    for index in (0, 12, 24):
        row = np.asarray(pictures[index])[SIDE // 2, SIDE:]
        line = np.flatnonzero((row == 255).all(-1))
        assert line.mean() == pytest.approx(index / 24 * (WIDTH - 1), abs=2)
    marks = (np.asarray(pictures[0])[MARK // 2, SIDE:-40] == ImageColor.getrgb(SEEN)).all(-1)
    first = observation.seen.impacts[0]
    assert np.flatnonzero(marks)[0] == pytest.approx(first / 2.0 * (WIDTH - 1), abs=2)
