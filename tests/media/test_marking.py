"""Marks of machine-made clips: written into every stream's header, read back by other tools."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from omniforcing import __version__
from omniforcing.cli import main
from omniforcing.media.marking import SOURCE_TYPE, Mark, read_marks
from tests.support.marked import ARTIFACT, stream
from tests.support.refusals import refused, refuses


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marked") / "clip.mp4"
    path.write_bytes(stream())
    return path


def printed(*command: str) -> str:
    """What another program prints; the test is skipped where it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_stream_says_who_made_it_and_that_it_is_no_recording(clip: Path) -> None:
    marks = read_marks(clip)
    assert marks["digital_source_type"] == SOURCE_TYPE
    assert marks["software"] == f"omniforcing {__version__}"
    assert (marks["model"], marks["artifact"]) == ("pocket", ARTIFACT)
    assert ARTIFACT in marks["comment"] and SOURCE_TYPE in marks["comment"]


def test_marks_of_a_file_with_a_colon_in_its_name_are_read(clip: Path, tmp_path: Path) -> None:
    """FFmpeg takes `12:30.mp4` for the protocol `12`."""
    shutil.copy(clip, tmp_path / "12:30.mp4")
    assert read_marks(tmp_path / "12:30.mp4") == read_marks(clip)


def test_a_muxer_that_is_told_nothing_still_marks(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(stream(None))
    marks = read_marks(tmp_path / "clip.mp4")
    assert marks["digital_source_type"] == SOURCE_TYPE
    assert not {"model", "artifact"} & marks.keys()


def test_a_stream_names_the_program_of_its_watermark(clip: Path, tmp_path: Path) -> None:
    watermark = "fedcba9876543210" * 4
    (tmp_path / "clip.mp4").write_bytes(stream(Mark("pocket", ARTIFACT, watermark=watermark)))
    marks = read_marks(tmp_path / "clip.mp4")
    assert marks["watermark"] == watermark and watermark in marks["comment"]
    assert "watermark" not in read_marks(clip) and "watermark" not in read_marks(clip)["comment"]


def test_marked_streams_repeat_and_play_from_their_header_on() -> None:
    assert stream() == stream()
    with av.open(io.BytesIO(stream())) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_names_that_xml_must_escape_stay_what_they_are(tmp_path: Path) -> None:
    mark = Mark('a "b" <c> & d', software='of "mine" & <yours>')
    (tmp_path / "clip.mp4").write_bytes(stream(mark))
    with av.open(str(tmp_path / "clip.mp4"), options={"export_xmp": "1"}) as container:
        packet = container.metadata["xmp"]
    description = ElementTree.fromstring(packet.partition("?>")[2].rpartition("<?")[0])[0][0]
    assert description.attrib["{http://ns.adobe.com/xap/1.0/}CreatorTool"] == mark.software
    assert "".join(description.itertext()).strip() == mark.comment


def test_exiftool_reads_the_source_type_where_iptc_puts_it(clip: Path) -> None:
    tags = json.loads(printed("exiftool", "-json", "-G1", str(clip)))[0]
    assert tags["XMP-iptcExt:DigitalSourceType"] == SOURCE_TYPE
    assert tags["XMP-xmp:CreatorTool"] == tags["ItemList:Encoder"] == f"omniforcing {__version__}"
    assert ARTIFACT in tags["ItemList:Comment"]


def test_mediainfo_names_the_software(clip: Path) -> None:
    assert f"omniforcing {__version__}" in printed("mediainfo", str(clip))


def test_ffmpeg_reads_the_tags(clip: Path) -> None:
    told = printed(get_ffmpeg_exe(), "-v", "error", "-i", str(clip), "-f", "ffmetadata", "-")
    tags = dict(line.split("=", 1) for line in told.replace("\\", "").splitlines() if "=" in line)
    assert tags["digital_source_type"] == SOURCE_TYPE and tags["artifact"] == ARTIFACT


@pytest.mark.parametrize("length", [0, 20, 1000])
def test_what_is_cut_off_in_its_header_is_called_unreadable(
    clip: Path, tmp_path: Path, length: int
) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:length])
    with refuses("file.unreadable", "cut.mp4"):
        read_marks(cut)


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_a_copy_in_another_container_keeps_what_matters(
    clip: Path, tmp_path: Path, kind: str
) -> None:
    copy = tmp_path / f"copy.{kind}"
    with av.open(str(clip)) as source, av.open(str(copy), "w") as target:
        target.metadata.update(source.metadata)
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    marks = read_marks(copy)
    assert marks["digital_source_type"] == SOURCE_TYPE
    assert ARTIFACT in marks["comment"]


def test_inspect_shows_the_marks_of_a_clip(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(clip)])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert "says that a machine made it" in shown and SOURCE_TYPE in shown and ARTIFACT in shown
    plain = tmp_path / "plain.mkv"
    with av.open(str(plain), "w") as container:
        video = container.add_stream("mpeg4", rate=24)
        video.width, video.height, video.pix_fmt = 16, 16, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
        for packet in [*video.encode(picture), *video.encode()]:
            container.mux(packet)
    with pytest.raises(SystemExit):
        main(["inspect", str(plain)])
    assert "does not say that a machine made it" in capsys.readouterr().out


def test_what_is_no_clip_or_no_folder_is_one_sentence(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("no clip")
    with refuses("file.unreadable", tmp_path / "text.mp4"):
        read_marks(tmp_path / "text.mp4")
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(clip), "--flags", "flags.json"])
    assert end.value.code == 2
    refused(capsys.readouterr().err, "option.malformed", clip, "--flags")
