"""The muxer: exact counts, aligned tracks, a keyframe per block, pieces that play as they come,
failures that leave nothing.
"""

from __future__ import annotations

import io
import re
import shutil
import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.ingest.kinds import ffmpeg, run
from omniforcing.core.files import new_file
from omniforcing.media.boxes import video_start
from omniforcing.media.mux import Muxer, OutputBuffer
from tests.support.limits import files_of_at_most
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

SECONDS = 3
LOOK_AHEAD = 0.14


def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A prefix frame, then seconds of grey ramps.

    The sound lags by the look-ahead and clicks at every whole second.
    """
    sound = np.zeros((2, 16000 * SECONDS), np.float32)
    for second in range(SECONDS):
        sound[:, 16000 * second : 16000 * second + 40] = 0.9
    sent = 0
    for index in range(1 + SECONDS):
        first, count = (1 + 24 * (index - 1), 24) if index else (0, 1)
        grey = np.arange(first, first + count, dtype=np.uint8).reshape(-1, 1, 1, 1) * 3
        until = 16000 * SECONDS if index == SECONDS else max(0, int(16000 * (index - LOOK_AHEAD)))
        yield np.broadcast_to(grey, (count, 64, 96, 3)), sound[:, sent:until]
        sent = until


def whole_stream() -> bytes:
    pieces = OutputBuffer()
    with Muxer(pieces, 64, 96, 16000) as muxer:
        for frames, samples in blocks():
            muxer.write(frames, samples)
    return pieces.take()


def pictures(data: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0))


def test_file_decodes_to_the_exact_frames_at_the_exact_times() -> None:
    frames = pictures(whole_stream())
    assert len(frames) == 1 + 24 * SECONDS
    assert [frame.pts * frame.time_base for frame in frames] == [
        Fraction(n, 24) for n in range(len(frames))
    ]
    means = [frame.to_ndarray(format="rgb24").mean() for frame in frames]
    assert np.abs(np.array(means) - 3 * np.arange(len(frames))).max() < 3


def test_a_keyframe_begins_every_block() -> None:
    keys = [index for index, frame in enumerate(pictures(whole_stream())) if frame.key_frame]
    assert keys == [0, *(1 + 24 * second for second in range(SECONDS))]


def test_sound_starts_with_the_picture_and_keeps_its_place() -> None:
    with av.open(io.BytesIO(whole_stream())) as container:
        assert container.streams.video[0].start_time == container.streams.audio[0].start_time == 0
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)
    assert 0 <= sound.shape[1] - 16000 * SECONDS < 1024
    for second in range(1, SECONDS):
        start = 16000 * second - 2000
        onset = start + int(np.argmax(np.abs(sound[0, start : start + 4000]) > 0.3))
        assert abs(onset - 16000 * second) <= 16, "a click moved by more than a millisecond"


def test_other_reader_agrees_on_the_frames(tmp_path: Path) -> None:
    decord = pytest.importorskip("decord")
    (tmp_path / "clip.mp4").write_bytes(whole_stream())
    reader = decord.VideoReader(str(tmp_path / "clip.mp4"))
    assert len(reader) == 1 + 24 * SECONDS


def test_pieces_play_as_they_come() -> None:
    pieces, received, playable = OutputBuffer(), b"", []
    muxer = Muxer(pieces, 64, 96, 16000)
    for frames, samples in blocks():
        muxer.write(frames, samples)
        received += pieces.take()
        playable.append(len(pictures(received)) if received else 0)
    muxer.close()
    received += pieces.take()
    assert playable == [1 + 24 * index for index in range(1 + SECONDS)], (
        "a picture waits for what comes after it"
    )
    assert len(pictures(received)) == 1 + 24 * SECONDS


def boxes_of(data: bytes) -> list[bytes]:
    """Kinds of the top-level boxes."""
    kinds, at = [], 0
    while at < len(data):
        kinds.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4], "big")
    return kinds


def test_every_block_is_one_fragment_behind_one_header() -> None:
    pieces, kinds = OutputBuffer(), []
    muxer = Muxer(pieces, 64, 96, 16000)
    for frames, samples in blocks():
        muxer.write(frames, samples)
        kinds.append(boxes_of(pieces.take()))
    assert kinds == [[b"ftyp", b"moov", b"uuid", b"moof", b"mdat"], *[[b"moof", b"mdat"]] * SECONDS]
    muxer.close()
    assert boxes_of(pieces.take()) == [b"moof", b"mdat"], "the end of the sound"


def decoded_sound(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)


def test_sound_has_no_gap_at_any_block_border() -> None:
    """A steady tone keeps its level and phase through every border, and no time stamp jumps."""
    count, rng = 12, np.random.default_rng(0)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000 * count) / 16000).astype(np.float32)
    pieces, sent = OutputBuffer(), 0
    with Muxer(pieces, 64, 96, 16000) as muxer:
        for index in range(count):
            until = (
                16000 * count if index == count - 1 else 16000 * index + int(rng.integers(1, 16000))
            )
            muxer.write(
                np.zeros((25 if index == 0 else 24, 64, 96, 3), np.uint8),
                np.stack([tone[sent:until]] * 2),
            )
            sent = until
    data = pieces.take()
    with av.open(io.BytesIO(data)) as container:
        stamps = [frame.pts for frame in container.decode(audio=0)]
    assert set(np.diff(stamps)) == {1024} and stamps[0] == 0
    assert (
        np.abs(decoded_sound(data)[0, 1024 : 16000 * count - 1024] - tone[1024:-1024]).max() < 0.02
    )


def test_picture_and_sound_stay_together_for_ten_minutes() -> None:
    """A click and a flash at every whole second, ten minutes long, in blocks whose sound lags by
    the look-ahead.
    """
    count, lag = 600, 3840
    flash = np.zeros((25, 16, 16, 3), np.uint8)
    flash[0] = 255
    click = np.zeros((2, 16000), np.float32)
    click[:, :160] = 0.9
    pieces, received = OutputBuffer(), []
    with Muxer(pieces, 16, 16, 16000) as muxer:
        muxer.write(flash[:1], click[:, :0])
        for second in range(count):
            # Frames 1 to 24 of a second; the flash of the next second is its last.
            sound = np.roll(click, lag, 1)[:, lag if second == 0 else 0 : 16000]
            muxer.write(np.roll(flash[:24], -1, 0), sound if second else click[:, : 16000 - lag])
            received.append(pieces.take())
    data = b"".join(received) + pieces.take()
    with av.open(io.BytesIO(data)) as container:
        seen = [
            f.pts * f.time_base
            for f in container.decode(video=0)
            if f.to_ndarray(format="gray").mean() > 128
        ]
        assert len(seen) == count + 1
    sound = np.abs(decoded_sound(data)[0])
    loud = np.flatnonzero(sound > 0.3)
    heard = loud[np.insert(np.diff(loud) > 8000, 0, True)] / 16000
    assert len(heard) == count
    offsets = np.abs(heard[1:] - np.array([float(time) for time in seen[1:count]]))
    assert offsets.max() < 1024 / 16000, "more than one audio frame apart"
    assert np.ptp(offsets) < 0.002, "they drift"


# --- what other programs make of it ---------------------------------------------------------------


def flashes_and_clicks(sample_rate: int) -> bytes:
    """Four seconds with a flash and a click at .5, 1.5, 2.5 and 3.5 s, each at the same instant."""
    pieces, seconds = OutputBuffer(), 4
    frames, samples = np.zeros((24, 64, 96, 3), np.uint8), np.zeros((2, sample_rate), np.float32)
    frames[11] = 255  # of frames 1 to 24
    samples[:, sample_rate // 2 :][:, : sample_rate // 100] = 0.9
    with Muxer(pieces, 64, 96, sample_rate) as muxer:
        muxer.write(frames[:1], samples[:, :0])
        for _ in range(seconds):
            muxer.write(frames, samples)
    return pieces.take()


def offsets_ms(data: bytes, **options: str) -> np.ndarray:
    """Each click's time less its flash's, as libavformat's demuxer with ``options`` plays them."""
    seen, heard = [], []
    with av.open(io.BytesIO(data), options=options) as container:
        for frame in container.decode(video=0):
            if frame.to_ndarray(format="gray").mean() > 128:
                seen.append(float(frame.pts * frame.time_base))
    with av.open(io.BytesIO(data), options=options) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.3)
            heard += list(float(frame.pts * frame.time_base) + loud / frame.sample_rate)
    onsets = np.array(heard)[np.insert(np.diff(heard) > 0.3, 0, True)]
    assert len(seen) == len(onsets) == 4
    return 1000 * (onsets - np.array(seen))


@pytest.mark.parametrize("sample_rate", [16_000, 48_000])
def test_sound_is_in_sync_with_and_without_edit_lists(sample_rate: int) -> None:
    """WebKitGTK ignores them: what they cut off the sound, they must cut off the picture too."""
    data = flashes_and_clicks(sample_rate)
    assert np.abs(offsets_ms(data)).max() < 0.5
    assert np.abs(offsets_ms(data, ignore_editlist="1")).max() < 0.5


@pytest.mark.parametrize("sample_rate", [16_000, 48_000])
@pytest.mark.parametrize("kind", ["mp4", "mov", "matroska"])
def test_a_remuxed_stream_is_in_sync(tmp_path: Path, sample_rate: int, kind: str) -> None:
    (tmp_path / "stream.mp4").write_bytes(flashes_and_clicks(sample_rate))
    ffmpeg("-i", tmp_path / "stream.mp4", "-c copy -f", kind, tmp_path / "copy")
    for copy in (remuxed(tmp_path / "stream.mp4", kind), (tmp_path / "copy").read_bytes()):
        assert np.abs(offsets_ms(copy)).max() <= 2


@pytest.mark.parametrize("sample_rate", [16_000, 48_000])
def test_decoding_begins_at_0_and_each_picture_is_shown_later(sample_rate: int) -> None:
    """Of a track that begins later, mkvmerge forgets when, and GStreamer cuts off twice as much."""
    data = flashes_and_clicks(sample_rate)
    starts = [struct.unpack_from(">Q", data, at + 8)[0] for at in places(data, b"tfdt")]
    assert starts[0] == 0
    at = places(data, b"trun")[0]
    flags, count = struct.unpack_from(">2I", data, at + 4)
    later = struct.unpack_from(f">{2 * count}I", data, at + 20)[1::2]
    assert flags == 0xA05 and set(later) == {video_start(1024, sample_rate)}


def places(data: bytes, kind: bytes) -> list[int]:
    """Where boxes of a kind stand, from their names on."""
    return [found.start() for found in re.finditer(re.escape(kind), data)]


@pytest.mark.skipif(shutil.which("mkvmerge") is None, reason="needs mkvmerge")
@pytest.mark.parametrize("sample_rate", [16_000, 48_000])
def test_mkvmerge_keeps_it_in_sync(tmp_path: Path, sample_rate: int) -> None:
    (tmp_path / "stream.mp4").write_bytes(flashes_and_clicks(sample_rate))
    run("mkvmerge", "-q", "-o", tmp_path / "copy.mkv", tmp_path / "stream.mp4")
    assert np.abs(offsets_ms((tmp_path / "copy.mkv").read_bytes())).max() <= 2


def remuxed(source: Path, kind: str) -> bytes:
    """The packets of a file in another one, by the FFmpeg of PyAV."""
    copy = io.BytesIO()
    with av.open(str(source)) as container, av.open(copy, "w", format=kind) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in container.streams}
        for packet in container.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return copy.getvalue()


def test_colours_are_named_in_the_box_and_in_the_bitstream() -> None:
    data = whole_stream()
    assert struct.pack(">I4s4s3HB", 19, b"colr", b"nclx", 1, 1, 1, 0) in data
    # Raw H.264 has no boxes: what is known of its colours stands in the SPS.
    raw = io.BytesIO()
    with av.open(io.BytesIO(data)) as container, av.open(raw, "w", format="h264") as out:
        video = container.streams.video[0]
        stream = out.add_stream_from_template(video)
        for packet in container.demux(video):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    for content, kind in ((data, "mp4"), (raw.getvalue(), "h264")):
        with av.open(io.BytesIO(content), format=kind) as container:
            frame = next(container.decode(video=0))
        found = frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range
        assert [int(value) for value in found] == [1, 1, 1, 1], kind


def test_colours_are_converted_as_they_are_named() -> None:
    """Each patch as a player shows it that goes by the tags: Y'CbCr of BT.709, 16 to 235."""
    patches = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (40, 184, 72), (128, 128, 128)]
    for colour in patches:
        pieces = OutputBuffer()
        with Muxer(pieces, 64, 64, 16000) as muxer:
            muxer.write(np.full((2, 64, 64, 3), colour, np.uint8), np.zeros((2, 0), np.float32))
        y, u, v = planes(pictures(pieces.take())[0])
        luma, blue, red = (y - 16) / 219, (u - 128) / 224 * 1.8556, (v - 128) / 224 * 1.5748
        green = (luma - 0.2126 * (luma + red) - 0.0722 * (luma + blue)) / 0.7152
        shown = 255 * np.array([luma + red, green, luma + blue])
        assert np.abs(shown - colour).max() < 4, (colour, shown)


def planes(frame: av.VideoFrame) -> list[float]:
    """Means of Y, Cb and Cr."""
    whole = frame.to_ndarray(format="yuv420p")
    bounds = np.cumsum([0, 4, 1, 1]) * frame.height // 4
    return [float(whole[a:b].mean()) for a, b in pairwise(bounds)]


def test_the_browsers_name_of_the_stream_tells_its_profile() -> None:
    assert Muxer(OutputBuffer(), 64, 96, 16000).mime == 'video/mp4; codecs="avc1.64000a, mp4a.40.2"'


def test_same_media_same_bytes() -> None:
    assert whole_stream() == whole_stream()


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"the old one")
    with new_file(target) as file:
        file.write(b"the new one")
        assert target.read_bytes() == b"the old one"
    assert target.read_bytes() == b"the new one"
    assert list(tmp_path.iterdir()) == [target]


def test_failed_stream_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"the old one")
    with (
        pytest.raises(KeyboardInterrupt),
        new_file(target) as file,
        Muxer(file, 64, 96, 16000) as muxer,
    ):
        muxer.write(*next(blocks()))
        raise KeyboardInterrupt
    assert target.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), np.uint8)
    full = refuses("disk.full", "clip.mp4")
    with full, files_of_at_most(8192):  # noqa: SIM117
        with new_file(tmp_path / "clip.mp4") as file, Muxer(file, 64, 96, 16000) as muxer:
            for _ in range(8):
                muxer.write(noise, np.zeros((2, 16000), np.float32))
    assert list(tmp_path.iterdir()) == []
