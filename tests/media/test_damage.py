"""Damaged files: what was lost is a reject, and nothing else is."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.ingest.kinds import X264, Sources, encoded
from benchmarks.ingest.losses import MP2, SOUND, X265, Chosen, losing, part, whole
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import ClipCutter
from omniforcing.media.reading.damage import Packet, damage_of
from omniforcing.media.reading.tracks import Rejected

pytestmark = pytest.mark.extended

FORM = ClipFormat(160, 256, 1)
CODERS = {
    "libx264": f"{X264} -g 24 -bf 2 {MP2}",
    "libx265": f"{X265} {MP2}",
    "mpeg2video": f"-c:v mpeg2video -g 12 -q:v 2 -bf 2 {MP2}",
    "mpeg4": f"-c:v mpeg4 -g 24 -q:v 2 -bf 2 {MP2}",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


def cuts(source: Path | bytes) -> list[np.ndarray | str]:
    """The frames of each clip, or why it was rejected."""
    cutter = ClipCutter(source, FORM)
    found: list[np.ndarray | str] = []
    for cut in range(cutter.cuts):
        try:
            found.append(cutter.clip(cut).video)
        except Rejected as error:
            found.append(error.reason)
    return found


def rejected(found: list[np.ndarray | str], right: list[np.ndarray | str]) -> dict[int, str]:
    """Which clips were rejected and why; all others are as they were."""
    assert len(found) == len(right)
    for clip, other in zip(found, right, strict=True):
        assert isinstance(clip, str) or np.array_equal(clip, other)
    return {cut: clip for cut, clip in enumerate(found) if isinstance(clip, str)}


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
@pytest.mark.parametrize("lost", [whole(60, 62), part(69)])
def test_clips_that_need_a_lost_packet_are_rejected_and_no_others(
    tmp_path: Path, sources: Sources, codec: str, lost: Chosen
) -> None:
    path = tmp_path / "a.ts"
    encoded(CODERS[codec])(path, sources)
    content = path.read_bytes()
    right = cuts(path)
    assert not any(isinstance(clip, str) for clip in right)
    found = rejected(cuts(losing(content, lost)), right)
    # From frame 60 on; the next keyframe is 72, or 96 where one itself is hurt.
    assert found and set(found) <= {2, 3, 4}
    assert set(found.values()) == {"undecodable frames"}


def test_sound_that_lost_a_packet_is_a_reject(tmp_path: Path, sources: Sources) -> None:
    path = tmp_path / "a.ts"
    encoded(CODERS["libx264"])(path, sources)
    found = cuts(losing(path.read_bytes(), part(30, SOUND)))  # 72 ms each: 2.16 s
    assert rejected(found, cuts(path)) == {2: "undecodable sound"}


def test_segments_that_were_joined_lack_nothing(tmp_path: Path, sources: Sources) -> None:
    names = tmp_path / "part-%d.ts"
    segments = "-f segment -segment_time 1 -segment_format mpegts"
    encoded(f"{CODERS['libx264']} {segments}")(names, sources)
    joined = b"".join((tmp_path / f"part-{number}.ts").read_bytes() for number in range(7))
    assert not any(isinstance(clip, str) for clip in cuts(joined))


@pytest.mark.parametrize("codec", CODERS)
@pytest.mark.parametrize("number", [26, 40, 47])
def test_no_frame_that_follows_a_damaged_one_passes_for_whole(
    tmp_path: Path, sources: Sources, codec: str, number: int
) -> None:
    """Also one that is shown before it, and one whose decoder gives nothing."""
    path, hurt = tmp_path / "a.mkv", tmp_path / "hurt.mkv"
    encoded(CODERS[codec])(path, sources)
    with av.open(str(path)) as old, av.open(str(hurt), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        pictures = 0
        for packet in old.demux():
            if not packet.size:
                continue
            place = packet.stream.index
            pictures += packet.stream.type == "video"
            if packet.stream.type == "video" and pictures == number + 1:
                half = av.Packet(bytes(packet)[: packet.size // 2])
                half.pts, half.dts, half.time_base = packet.pts, packet.dts, packet.time_base
                half.is_keyframe = packet.is_keyframe
                packet = half
            packet.stream = streams[place]
            new.mux(packet)
    found = rejected(cuts(hurt), cuts(path))
    assert found and set(found) <= {0, 1, 2} and set(found.values()) == {"undecodable frames"}


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.avi", "a.mpg"])
@pytest.mark.parametrize("share", [0.4, 0.77])
def test_what_is_there_of_a_file_that_was_cut_off_is_whole(
    tmp_path: Path, sources: Sources, name: str, share: float
) -> None:
    path = tmp_path / name
    codec = {"a.avi": "mpeg4", "a.mpg": "mpeg2video"}.get(name, "libx264")
    encoded(CODERS[codec])(path, sources)
    right = cuts(path)
    content = path.read_bytes()
    found = cuts(content[: round(share * len(content))])
    assert 1 < len(found) < len(right)
    assert not rejected(found, right[: len(found)])


def test_a_cut_off_file_whose_times_stood_at_its_end_is_a_reject(
    tmp_path: Path, sources: Sources
) -> None:
    path = tmp_path / "a.mxf"
    encoded("-c:v mpeg2video -q:v 2 -bf 2 -c:a pcm_s16le")(path, sources)
    assert len(cuts(path)) == 6
    with pytest.raises(Rejected) as error:
        cuts(path.read_bytes()[:-20000])
    assert error.value.reason == "truncated"


def track(*marked: int, count: int = 96, missing: int = 0, keys: int = 24) -> list[Packet]:
    """Packets of a picture at 24 fps, some marked; ``missing`` ones lie behind each of them."""
    packets = []
    at = 0
    for number in range(count):
        packets.append(Packet(at, 1, at, number % keys == 0, number in marked))
        at += 1 + (missing if number in marked else 0)
    return packets


def test_a_mark_before_a_keyframe_is_a_joint_unless_packets_are_missing() -> None:
    bases = float(Fraction(1, 24)), 1.0
    assert damage_of(track(46), [], bases, True).video == ()
    assert damage_of(track(46, missing=1), [], bases, True).video != ()
    # The mark may belong to the keyframe itself, as a parser gives it one packet early.
    ((begin, end),) = damage_of(track(47), [], bases, True).video
    assert 46 / 24 < begin <= 47 / 24 and end == pytest.approx(72 / 24)
    # Nothing follows: to the end.
    ((_, end),) = damage_of(track(95), [], bases, True).video
    assert end == np.inf


def test_packets_that_are_missing_without_a_mark_are_lost_if_the_sound_has_a_gap_too() -> None:
    pictures = track(30, missing=16)
    pictures[30] = Packet(30, 1, 30)
    even = [Packet(at, 1, at) for at in range(6)]
    gap = [Packet(at, 1, at) for at in (0, 2, 3, 4, 5)]
    bases = float(Fraction(1, 24)), 1.0
    assert damage_of(pictures, even, bases, True).video == ()
    assert damage_of(pictures, gap, bases, False).video == ()
    assert len(damage_of(pictures, gap, bases, True).video) == 1
