"""Files of recent phones and cameras: codecs and colours that no other test's program writes."""

from pathlib import Path

import pytest

from benchmarks.ingest.__main__ import make, measure, verdict
from benchmarks.ingest.dolby import dolby
from benchmarks.ingest.further import further
from omniforcing.core.config import project_root
from omniforcing.media.reading.probe import probe
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended


@pytest.mark.parametrize("name", ["vvc.mp4", "apv.mp4", "grain_av1.mp4", "dolby_vision_8.mp4"])
def test_every_frame_is_in_its_place_and_in_its_colours(tmp_path: Path, name: str) -> None:
    (kind,) = [kind for kind in [*further(), *dolby()] if kind.name == name]
    assert make(tmp_path, [kind]) == {}
    assert verdict(measure(project_root(), [tmp_path / name])[name], kind) == "right"


@pytest.mark.parametrize("name", ["dolby_vision_5.mp4", "dolby_vision_5.mkv"])
def test_colours_that_no_standard_names_are_a_reject(tmp_path: Path, name: str) -> None:
    """Read as those that the bitstream states, they would be green and violet."""
    (kind,) = [kind for kind in dolby() if kind.name == name]
    assert make(tmp_path, [kind]) == {}
    with refuses("media.unknown-colours", "profile 5"):
        probe(tmp_path / name)
