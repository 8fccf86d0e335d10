"""Kinds of files that `benchmarks.ingest` makes and measures: those that no other test writes."""

from pathlib import Path

import av
import pytest

from benchmarks.ingest.__main__ import make, measure, verdict
from benchmarks.ingest.copies import copies, joined
from benchmarks.ingest.dolby import dolby
from benchmarks.ingest.fields import fields
from benchmarks.ingest.further import further
from benchmarks.ingest.kinds import AAC, X264, Kind, Sources, encoded, ffmpeg
from omniforcing.core.config import project_root
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.clock import demux
from omniforcing.media.reading.conform import ClipCutter
from omniforcing.media.reading.probe import probe
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

RECENT = {"vvc.mp4", "apv.mp4", "grain_av1.mp4", "dolby_vision_8.mp4"}
RAW_FIELDS = {"fields_uyvy.mov", "fields_nv12.mkv"}


def assert_all_right(folder: Path, kinds: list[Kind]) -> None:
    assert make(folder, kinds) == {}
    found = measure(project_root(), [folder / kind.name for kind in kinds])
    verdicts = {kind.name: verdict(found[kind.name], kind) for kind in kinds}
    assert verdicts == dict.fromkeys(verdicts, "right")


def test_recent_codecs_and_raw_fields_are_in_place_and_in_their_colours(tmp_path: Path) -> None:
    kinds = [kind for kind in [*further(), *dolby()] if kind.name in RECENT]
    raw = [kind for kind in fields() if kind.name in RAW_FIELDS]
    assert len(kinds) == len(RECENT) and len(raw) == len(RAW_FIELDS)
    assert_all_right(tmp_path, kinds + raw)


def test_what_was_joined_or_copied_without_encoding_keeps_its_time(tmp_path: Path) -> None:
    assert_all_right(tmp_path, copies())


@pytest.mark.parametrize("name", ["dolby_vision_5.mp4", "dolby_vision_5.mkv"])
def test_colours_that_no_standard_names_are_a_reject(tmp_path: Path, name: str) -> None:
    """Read as those that the bitstream states, they would be green and violet."""
    (kind,) = [kind for kind in dolby() if kind.name == name]
    assert make(tmp_path, [kind]) == {}
    with refuses("media.unknown-colours", "profile 5"):
        probe(tmp_path / name)


@pytest.mark.parametrize(
    "pause",
    [
        "-af asetnsamples=1024,aselect=not(between(t\\,2\\,14))",
        "-vf select=not(between(t\\,2\\,14)) -fps_mode passthrough",
    ],
)
def test_a_track_of_a_broadcast_that_pauses_goes_on_in_time(tmp_path: Path, pause: str) -> None:
    """Of a clock that jumps, all tracks would jump."""
    path = tmp_path / "pause.ts"
    inputs = "-f lavfi -i testsrc=s=64x64:r=10:d=18 -f lavfi -i sine=d=18"
    ffmpeg(inputs, pause, "-c:v mpeg2video -c:a mp2", path)
    with av.open(str(path)) as container:
        packets = list(container.demux(*container.streams))
        stored = [packet.pts for packet in packets if packet.size]
    with av.open(str(path)) as container:
        read = [packet.pts for packet in demux(container, container.streams) if packet.size]
    assert read == stored and len(read) > 200


def test_joined_files_whose_pictures_share_stamps_are_read(tmp_path: Path) -> None:
    joined(f"{X264} -g 24 {AAC}")(tmp_path / "joined.mkv", Sources(tmp_path))
    assert len(probe(tmp_path / "joined.mkv").times) > 90


def test_an_encrypted_file_is_called_so(tmp_path: Path) -> None:
    key = f"-encryption_key {'17' * 16} -encryption_kid {'42' * 16}"
    make_file = encoded(f"{X264} {AAC} -encryption_scheme cenc-aes-ctr {key}")
    make_file(tmp_path / "a.mp4", Sources(tmp_path))
    with refuses("media.encrypted", "key"):
        probe(tmp_path / "a.mp4")


def test_of_a_recording_that_begins_small_the_large_clips_are_taken(tmp_path: Path) -> None:
    sources, parts = Sources(tmp_path), []
    for cut, size in (("-t 2", "64:40"), ("-ss 2 -t 4", "256:160")):
        part = tmp_path / f"{size[:2]}.ts"
        coders = f"-vf scale={size} {X264} -g 24 -c:a mp2"
        ffmpeg(cut, "-i", sources.video(24), cut, "-i", sources.audio(), coders, part)
        parts.append(part.read_bytes())
    form, grown = ClipFormat(160, 256, 2), tmp_path / "grown.ts"
    grown.write_bytes(b"".join(parts))
    cutter = ClipCutter(grown, form)
    with refuses("media.too-small", "64"):
        cutter.clip(0)
    assert cutter.cuts >= 2 and cutter.clip(1).video.shape == (49, 160, 256, 3)
    with refuses("media.too-short", cutter.cuts):  # of a file that was replaced by a shorter one
        cutter.clip(cutter.cuts)
    with refuses("media.too-small", "64"):
        ClipCutter(tmp_path / "64.ts", form)
