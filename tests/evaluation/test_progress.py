"""Long clips are measured part by part."""

from pathlib import Path

import numpy as np
import pytest

from omniforcing.core.files import read_json
from omniforcing.core.pair import Pair
from omniforcing.evaluation.measures.clips import Clip, Skipped
from omniforcing.evaluation.measures.encoders.distances import Mmd
from omniforcing.evaluation.measures.progress import (
    measure_parts,
    parts_of,
    progress_table,
    save_progress,
)
from omniforcing.evaluation.measures.registry import chosen_measures
from tests.support.refusals import refuses


def fading(index: int, seconds: int = 6) -> Clip:
    """A clip whose sound gets fainter from part to part, and whose picture stops in the last."""
    generator = np.random.default_rng(index)
    frames = generator.integers(0, 255, (1 + 24 * seconds, 16, 16, 3), np.uint8)
    frames[4 * 24 :] = frames[4 * 24 : 4 * 24 + 1]
    sound = generator.normal(0, 0.2, (2, 16000 * seconds)).astype(np.float32)
    sound[:, 2 * 16000 :] *= 0.5
    sound[:, 4 * 16000 :] *= 0.0
    return Clip(str(index), Pair(frames, sound))


def test_parts_hold_whole_seconds_and_the_frame_between() -> None:
    parts = list(parts_of(fading(0, 5), 2))
    assert [part.seconds for part in parts] == [2, 2]
    assert [len(part.media.video) for part in parts] == [49, 49]
    assert (parts[0].media.video[-1] == parts[1].media.video[0]).all()


def test_what_gets_worse_shows_part_by_part(tmp_path: Path) -> None:
    clips: list[Clip | Skipped] = [
        *(fading(index) for index in range(3)),
        Skipped("broken.mp4", "no video"),
    ]
    found = measure_parts(clips, chosen_measures(["loudness", "frozen_share"]), 2)
    frozen = [part.rows[0].figure for part in found]
    loud = [part.rows[1].figure for part in found]
    assert [figure and figure.value for figure in frozen] == [0, 0, 1]
    assert loud[0] and loud[1] and loud[0].value - loud[1].value == pytest.approx(6, abs=0.5)
    assert loud[2] is None
    table = progress_table(found, 2)
    assert "0-2 s" in table and "4-6 s" in table
    assert "loudness, 4-6 s: needs 1 clip that are not silent, found 0" in table
    save_progress(found, 2, tmp_path / "parts.json")
    assert table.endswith("not measured: 1\n  broken.mp4: no video")
    content = read_json(tmp_path / "parts.json")
    assert content["skipped"] == [{"name": "broken.mp4", "why": "no video"}]
    assert len(content["parts"]) == 3 and "found 0" in content["parts"][2]["loudness"]["why"]


def test_clips_that_are_too_short_are_refused() -> None:
    with refuses("evaluation.too-short", "lasts 8 s", "--every"):
        measure_parts([fading(0)], chosen_measures(["loudness"]), 4)


class Level(Mmd):
    """A distance of the sound's level."""

    name = "level"
    protocol = "mean of absolute samples"
    licence = "none"

    def __init__(self) -> None:
        self.missing = ""

    def features(self, clip: Clip) -> np.ndarray:
        return np.abs(clip.media.audio).mean(1)


def test_distances_of_parts_compare_with_other_clips_where_there_are_some() -> None:
    clips, others = [fading(index) for index in range(4)], [fading(index, 2) for index in range(4)]
    own = measure_parts(clips, [Level()], 2)
    same = measure_parts(clips, [Level()], 2, others)  # whose only parts are as loud as the first
    quiet = [Clip("", Pair(clip.media.video, clip.media.audio * 0)) for clip in others]
    other = measure_parts(clips, [Level()], 2, quiet)
    first, last, near, far = (
        parts[index].rows[0].figure for parts, index in ((own, 0), (own, 2), (same, 0), (other, 2))
    )
    assert first and last and near and far
    assert last.value > near.value and far.value < last.value
    (row,) = measure_parts(clips, [Level()], 2, [fading(0, 1)])[0].rows
    assert row.figure is None and "to compare with, found 0" in row.why
