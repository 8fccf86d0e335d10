"""Films whose pictures are shown for two and three fields in turn."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.ingest.film import STAMPS, pulled_down
from benchmarks.ingest.kinds import Sources
from benchmarks.ingest.truth import number_of
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
