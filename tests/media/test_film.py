"""Films whose pictures are shown for two and three fields in turn, and fields coded apart."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.ingest.fields import fields
from benchmarks.ingest.film import STAMPS, pulled_down
from benchmarks.ingest.kinds import Sources
from benchmarks.ingest.truth import number_of
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import ClipCutter
from omniforcing.media.reading.pictures import decode
from omniforcing.media.reading.tracks import open_container, read_tracks

pytestmark = pytest.mark.extended


@pytest.mark.parametrize("name", ["a.mpg", "a.vob", "a.ts"])
def test_each_picture_of_a_film_is_shown_for_its_fields(tmp_path: Path, name: str) -> None:
    """A program stream stores the time of some pictures only; repeated fields tell the others."""
    path = tmp_path / name
    pulled_down(path, Sources(tmp_path))
    tracks = read_tracks(path)
    with open_container(path) as container:
        pictures = list(decode(container, tracks))
    shown = [number_of(picture.frame.to_ndarray(format="rgb24")) for picture in pictures]
    assert shown == list(range(len(STAMPS)))
    late = np.array([picture.time for picture in pictures]) - STAMPS
    assert np.abs(late - late[0]).max() < 0.001


@pytest.mark.parametrize("name", ["paff_bottom.ts", "paff_apart.ts", "paff_top.mp4"])
def test_fields_that_are_coded_apart_are_one_picture(tmp_path: Path, name: str) -> None:
    (kind,) = [kind for kind in fields() if kind.name == name]
    kind.make(tmp_path / name, Sources(tmp_path))
    cutter = ClipCutter(tmp_path / name, ClipFormat(160, 256, 2))
    assert cutter.cuts == 3 and cutter.info.interlaced and len(cutter.info.times) >= 160
    shown = [number_of(frame) for frame in cutter.clip(1).video]
    # The first field of the frame at hand, of those that are 40 ms apart, is shown whole.
    nearest = [abs(number / 50 - 2 - index / 24) for index, number in enumerate(shown)]
    assert not any(number % 2 for number in shown) and max(nearest) < 0.041
