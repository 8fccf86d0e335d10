"""Shapes of pictures that a container turns, stretches or slants."""

from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.ingest.kinds import AAC, X264, Sources, encoded, ffmpeg
from benchmarks.ingest.shapes import (
    HALF_TURN,
    SLANTED,
    SQUEEZED,
    STRETCHED,
    TURNED_45,
    Matrix,
    copy,
    with_matrix,
)
from benchmarks.ingest.truth import CORNERS, corners_of
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import ClipCutter
from omniforcing.media.reading.probe import probe
from omniforcing.media.reading.tracks import Rejected
from tests.support.videos import MakeVideo

pytestmark = pytest.mark.extended


@pytest.mark.parametrize(
    ("matrix", "found"),
    [
        (TURNED_45, "turned by 45 degrees"),
        ((-HALF_TURN, HALF_TURN, HALF_TURN, HALF_TURN), "turned by 135 degrees"),  # mirrored
        ((2 * 0.866, 1, -1, 2 * 0.866), "turned by 30 degrees"),
        (SLANTED, "slanted"),
        ((1, 0.3, 0, 1), "slanted"),
        ((0, 1, -2, 0), "stretched to 2.00 times its width"),
    ],
)
def test_a_picture_that_cannot_be_made_upright_is_a_reject(
    make_video: MakeVideo, matrix: Matrix, found: str
) -> None:
    path = make_video("a.mp4", seconds=1.1)
    path.write_bytes(with_matrix(path.read_bytes(), matrix))
    with pytest.raises(Rejected) as error:
        probe(path)
    assert error.value.reason == "askew picture"
    assert found in error.value.detail and "editor" in error.value.detail


@pytest.mark.parametrize(
    "matrix", [(1, 0, 0, 1), (1, 0.01, -0.01, 1), (2, 0, 0, 2), (0, 0, 0, 0), (0, 1, -1, 0)]
)
def test_a_degree_and_an_even_scale_change_nothing(make_video: MakeVideo, matrix: Matrix) -> None:
    path = make_video("a.mp4", seconds=1.1, size=(64, 96))
    path.write_bytes(with_matrix(path.read_bytes(), matrix))
    info = probe(path)
    assert (info.height, info.width) == ((96, 64) if matrix[1] == 1 else (64, 96))
    assert info.aspect == 1


def test_a_picture_that_its_matrix_stretches_has_wide_pixels(make_video: MakeVideo) -> None:
    path = make_video("a.mp4", seconds=1.1, size=(64, 64))
    path.write_bytes(with_matrix(path.read_bytes(), STRETCHED))
    assert probe(path).aspect == 2


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_aspect_of_pixels_turns_with_the_picture(tmp_path: Path, name: str) -> None:
    lying, turned = tmp_path / "lying.mp4", tmp_path / "turned.mp4"
    encoded(f"{X264} {AAC}", filters=SQUEEZED)(lying, Sources(tmp_path))
    turned.write_bytes(with_matrix(lying.read_bytes(), (0, -1, 1, 0)))
    path = tmp_path / name
    copy(turned, path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio.numerator == 4
    info = probe(path)
    assert (info.height, info.width, info.aspect) == (120, 256, 0.75)
    frame = ClipCutter(path, ClipFormat(160, 256, 1)).clip(0).video[3]
    assert np.abs(corners_of(frame) - np.array(CORNERS)).max() < 5


def test_pixels_of_a_broadcast_that_change_their_shape_stretch_nothing(tmp_path: Path) -> None:
    """A wide advert before a programme of 4:3, which loses rows to the wide frame."""
    sources, path, content = Sources(tmp_path), tmp_path / "a.ts", b""
    for cut, shape in (("-t 2", "16/9"), ("-ss 2 -t 2", "4/3")):
        filters = f"-vf scale=720:576,setdar={shape}"
        coders = "-c:v mpeg2video -q:v 2 -bf 2 -c:a mp2"
        ffmpeg(cut, "-i", sources.video(25), cut, "-i", sources.audio(), filters, coders, path)
        content += path.read_bytes()
    path.write_bytes(content)
    cutter = ClipCutter(path, ClipFormat(288, 512, 1))
    blocks = []
    for cut_number in (0, cutter.cuts - 1):
        frame = cutter.clip(cut_number).video[12].astype(int)
        seen = np.abs(frame - np.array(CORNERS[0])).max(-1) < 30
        blocks.append((int(seen[:, 4].sum()), int(seen[4].sum())))
    assert np.abs(np.array(blocks) - [(72, 102), (48, 102)]).max() <= 1
