"""Films whose pictures are shown for two and three fields in turn, and fields coded apart."""

from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.ingest.fields import fields
from benchmarks.ingest.film import STAMPS, pulled_down
from benchmarks.ingest.kinds import Sources
from benchmarks.ingest.truth import HEIGHT, WIDTH, number_of
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


@pytest.mark.parametrize(
    "name",
    [
        *("paff_bottom.ts", "paff_apart.ts", "paff_top.mp4"),
        *("fields_hevc.ts", "fields_hevc.mp4", "fields_bottom_hevc.mkv"),
    ],
)
def test_fields_that_are_coded_apart_are_one_picture(tmp_path: Path, name: str) -> None:
    (kind,) = [kind for kind in fields() if kind.name == name]
    kind.make(tmp_path / name, Sources(tmp_path))
    cutter = ClipCutter(tmp_path / name, ClipFormat(HEIGHT, WIDTH, 2))
    assert (cutter.info.height, cutter.info.width) == (HEIGHT, WIDTH)
    assert cutter.cuts == 3 and cutter.info.interlaced and len(cutter.info.times) >= 160
    shown = [number_of(frame) for frame in cutter.clip(1).video]
    # The first field of the frame at hand, of those that are 40 ms apart, is shown whole.
    nearest = [abs(number / 50 - 2 - index / 24) for index, number in enumerate(shown)]
    assert not any(number % 2 for number in shown) and max(nearest) < 0.041


def first_slice(packet: bytes) -> int:
    """The kind of the first slice in a packet of HEVC, whose units follow their lengths."""
    at = 0
    while (kind := packet[at + 4] >> 1 & 63) >= 32:  # parameters and messages
        at += 4 + int.from_bytes(packet[at : at + 4], "big")
    return kind


@pytest.mark.parametrize("second", [False, True])
def test_only_the_frame_of_a_missing_field_is_missing(tmp_path: Path, second: bool) -> None:
    """Behind a first field, fields form other pairs than before, of which the last lacks one.

    (Numbers change with every field, so one may be read by 1 wrong in an odd picture.)
    """
    (kind,) = [kind for kind in fields() if kind.name == "fields_bottom_hevc.mkv"]
    whole, less = tmp_path / kind.name, tmp_path / "less.mkv"
    kind.make(whole, Sources(tmp_path))
    lost = 0
    with av.open(str(whole)) as old, av.open(str(less), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            # A field in the third second that nothing follows.
            if packet.stream.type == "video" and packet.size and not lost:
                wanted = packet.pts > 2000 and packet.pts // 20 % 2 == second
                lost = packet.pts * (wanted and first_slice(bytes(packet)) in (0, 6, 8))
                if lost:
                    continue
            if packet.size:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    with open_container(less) as container:
        pictures = list(decode(container, read_tracks(less)))
    shown = [
        (picture.time, number_of(picture.frame.to_ndarray(format="rgb24")))
        for picture in pictures
        if picture.frame is not None
    ]
    late = np.array([time - number / 50 for time, number in shown])
    assert lost and len(shown) == 161 and np.ptp(late) < 0.021
    (missing,) = [picture.time for picture in pictures if picture.frame is None]
    assert missing == pytest.approx((lost / 1000 - 0.02) if second else pictures[-1].time)
    assert {number % 2 for _, number in shown} == ({0} if second else {0, 1})
