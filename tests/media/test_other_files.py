"""Files as cameras, phones and recorders write them: in sync, upright, in their colours."""

import os
import signal
import struct
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from benchmarks.ingest.edits import Cuts, with_edits
from omniforcing.core.pair import Pair
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import ClipCutter
from omniforcing.media.reading.frames.colour import Colour, convert
from omniforcing.media.reading.isolated import Isolated
from omniforcing.media.reading.mix import stereo
from omniforcing.media.reading.probe import probe
from omniforcing.media.reading.sound import read_sound
from omniforcing.media.reading.tracks import Rejected
from tests.support.videos import MakeVideo, picture, sound

pytestmark = pytest.mark.extended

EVENTS = (0.5, 1.5)
FORM = ClipFormat(64, 64, 2)
TONES = (440.0, 880.0)
HALF_A_FRAME = 1 / 48 + 0.001


def flash_and_click(media: Pair[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Times of flashes and clicks of a clip, in seconds."""
    white = media.video.mean((1, 2, 3)) > 200
    loud = np.abs(media.audio).max(0) > 0.2
    first = [not loud[max(0, i - 800) : i].any() for i in np.flatnonzero(loud)]
    starts = np.flatnonzero(white & ~np.r_[False, white[:-1]])
    return starts / 24, np.flatnonzero(loud)[first] / 16000


def assert_in_sync(path: Path, within: float = 0.002) -> None:
    cutter = ClipCutter(path, FORM)
    for cut in range(cutter.cuts):
        flashes, clicks = flash_and_click(cutter.clip(cut))
        assert len(flashes) == len(clicks) > 0
        assert np.abs(flashes - clicks).max() <= within


def remux(
    source: Path,
    target: Path,
    move: Callable[[Any], float] = lambda _packet: 0.0,
    **options: str,
) -> Path:
    """Copy packets into another file, moved by seconds."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.size:
                shift = round(move(packet) / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return target


def tones(path: Path, **how: Any) -> np.ndarray:
    """Level of each of ``TONES`` in each side of a file's sound, ``[side, tone]``."""
    samples = read_sound(path, **how).samples[:, 4000:20000]
    at = np.arange(samples.shape[1]) / 16000
    waves = np.exp(-2j * np.pi * np.array(TONES)[:, None] * at)
    return 2 * np.abs(samples @ waves.T) / samples.shape[1]


def two_tones(channels: int, rate: int, seconds: float = 2.0) -> np.ndarray:
    """A tone of its own in each of the first two channels, float32 ``[channels, N]``."""
    at = np.arange(round(seconds * rate)) / rate
    samples = np.zeros((channels, len(at)), np.float32)
    for channel, tone in enumerate(TONES[:channels]):
        samples[channel] = 0.3 * np.sin(2 * np.pi * tone * at)
    return samples


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_pictures_stored_out_of_order_in_avi_keep_their_time(
    make_video: MakeVideo, codec: str
) -> None:
    path = make_video(
        "a.avi", seconds=4.2, codec=codec, audio="pcm_s16le", events=(0.5, 1.5, 2.5, 3.5)
    )
    assert_in_sync(path)


def test_a_recorder_that_drops_frames_in_avi_loses_no_clip(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    """A screen that stands still for two of four seconds: AVI stores empty chunks for it."""
    events = (0.5, 3.5)
    how = {"codec": "mjpeg", "pixels": "yuvj420p", "audio": "pcm_s16le"}
    whole = make_video("whole.avi", seconds=4.2, events=events, **how)
    dropped = tmp_path / "dropped.avi"
    with av.open(str(whole)) as old, av.open(str(dropped), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            still = packet.stream.type == "video" and packet.size and 24 <= packet.dts < 72
            if packet.size and not still:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    info = probe(dropped)
    assert len(info.times) == 101 - 48 and info.video_end == pytest.approx(101 / 24)
    assert ClipCutter(dropped, FORM).cuts == 2
    assert_in_sync(dropped)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("codec", ["mpeg2video", "libx265"])
def test_every_cut_of_open_groups_of_pictures_is_in_sync(
    make_video: MakeVideo, codec: str, name: str
) -> None:
    audio = {"audio": "mp2"} if codec == "mpeg2video" else {}
    path = make_video(
        name, seconds=6.2, codec=codec, events=[t + 0.5 for t in range(6)], rate=48000, **audio
    )
    assert ClipCutter(path, FORM).cuts == 3
    assert_in_sync(path)


@pytest.mark.parametrize("cut", [0.3, 0.31, 0.333])
def test_trim_that_begins_within_a_frame_stays_in_sync(make_video: MakeVideo, cut: float) -> None:
    whole = make_video("whole.mp4", seconds=3, audio="aac", rate=48000, events=(1.0, 2.0))
    trimmed = remux(whole, whole.with_name("trimmed.mp4"), lambda _: -cut)
    flashes, clicks = flash_and_click(ClipCutter(trimmed, FORM).clip(0))
    # The first clip begins with the first whole frame, so both are as early as the cut says.
    assert np.abs(flashes - clicks).max() < 0.002
    assert 0 <= clicks[0] - (1.0 - cut) + 1 / 24 < 1 / 24 + 0.002


@pytest.mark.parametrize("cuts", [((0.0, 1.0), (2.0, 4.5)), ((0.0, 1.01), (2.01, 4.5))])
@pytest.mark.parametrize(("name", "audio"), [("a.mp4", "aac"), ("a.mov", "pcm_s16le")])
def test_an_edit_list_of_several_parts_is_followed_to_the_sample(
    make_video: MakeVideo, name: str, audio: str, cuts: Cuts
) -> None:
    events = (0.5, 1.5, 2.5, 3.5)  # the second is cut out
    path = make_video(name, seconds=4.5, audio=audio, events=events)
    path.write_bytes(with_edits(path.read_bytes(), cuts))
    clip = ClipCutter(path, ClipFormat(64, 64, 3)).clip(0)
    flashes, clicks = flash_and_click(clip)
    assert clicks == pytest.approx([0.5, 1.5, 2.5], abs=0.001)
    assert flashes == pytest.approx(clicks, abs=HALF_A_FRAME)


def test_parts_that_repeat_are_a_reject(make_video: MakeVideo) -> None:
    path = make_video("a.mp4", seconds=3)
    path.write_bytes(with_edits(path.read_bytes(), ((1.0, 2.0), (0.0, 2.0))))
    with pytest.raises(Rejected) as error:
        probe(path)
    assert error.value.reason == "unusual edits"


def test_clock_that_wraps_and_recordings_that_were_joined_go_on(make_video: MakeVideo) -> None:
    wraps = make_video(
        "wraps.ts", seconds=4.2, events=(0.5, 1.5, 2.5, 3.5), output_ts_offset=str(2**33 / 9e4 - 2)
    )
    assert ClipCutter(wraps, FORM).cuts == 2
    assert_in_sync(wraps)
    one = make_video("one.ts", seconds=2, events=EVENTS)
    later = make_video("later.ts", seconds=2.2, events=EVENTS, output_ts_offset="100")
    joined = one.with_name("joined.ts")
    joined.write_bytes(one.read_bytes() + later.read_bytes())
    assert ClipCutter(joined, FORM).cuts == 2
    assert_in_sync(joined, HALF_A_FRAME)  # the second recording is off the first one's grid


def test_late_sound_stays_late_to_the_millisecond(make_video: MakeVideo) -> None:
    path = make_video("a.mp4", seconds=4, rate=48000, events=(1.0, 2.0))
    late = remux(path, path.with_name("late.mp4"), lambda p: 0.5 * (p.stream.type == "audio"))
    flashes, clicks = flash_and_click(ClipCutter(late, FORM).clip(0))
    assert clicks[0] - flashes[0] == pytest.approx(0.5, abs=0.002)


def drifting(path: Path, events: list[float], samples: np.ndarray) -> Path:
    """20 s of which the samples ``[2, N]`` are 0.3 % fewer than their stamps say."""
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("libx264", rate=24), out.add_stream("pcm_s16le", rate=16000)
        video.width = video.height = 64
        audio.layout = "stereo"
        for index in range(20 * 24):
            frame = av.VideoFrame.from_ndarray(picture(index / 24, 64, 64, events), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 24)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for first in range(0, samples.shape[1], 800):
            part = np.ascontiguousarray(
                (samples * 32767)[:, first : first + 800].astype(np.int16).T
            )
            wave = av.AudioFrame.from_ndarray(part.reshape(1, -1), "s16", "stereo")
            wave.rate, wave.pts, wave.time_base = 16000, round(first / 0.997), Fraction(1, 16000)
            out.mux(audio.encode(wave))
        out.mux(audio.encode(None))
    return path


def test_sound_whose_stamps_drift_is_stretched_without_holes(tmp_path: Path) -> None:
    events = [t + 0.5 for t in range(20)]
    # Played as they come they would be early.
    slow = [time * 0.997 for time in events]
    samples = sound(20 * 0.997, 16000, 2, slow) + 0.05
    cutter = ClipCutter(drifting(tmp_path / "drift.mkv", events, samples), FORM)
    for cut in (0, 4, 8):
        media = cutter.clip(cut)
        flashes, clicks = flash_and_click(media)
        assert np.abs(flashes - clicks).max() < 0.003
        assert media.audio[:, 1000:-1000].min() > -0.9  # the click swings below the offset
        quiet = np.abs(media.audio[0] - 0.05) < 0.01
        assert quiet.mean() > 0.9, "silence was filled in"


def test_a_tone_that_is_stretched_stays_one_tone(tmp_path: Path) -> None:
    """Matroska's stamps are whole milliseconds; following each would make the pitch waver."""
    at = np.arange(round(20 * 0.997 * 16000)) / (0.997 * 16000)
    samples = np.tile(0.1 * np.sin(2 * np.pi * 440 * at), (2, 1))
    cutter = ClipCutter(drifting(tmp_path / "drift.mkv", [0.5], samples), FORM)
    for cut in (0, 4, 8):
        heard = cutter.clip(cut).audio[0]
        wave = np.exp(-2j * np.pi * 440 * np.arange(len(heard)) / 16000)
        assert 2 * np.abs(heard @ wave) / len(heard) == pytest.approx(0.1, rel=0.01)


# --- picture ------------------------------------------------------------------------------------


def corners(path: Path, form: ClipFormat) -> list[str]:
    """Colours of the upper corners of the first frame, left and right, and of the lower ones."""
    frame = ClipCutter(path, form).clip(0).video[0].astype(int)
    places = [frame[4, 4], frame[4, -5], frame[-5, 4], frame[-5, -5]]
    return ["red" if p[0] > 150 else "green" if p[1] > 150 else "grey" for p in places]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
@pytest.mark.parametrize(
    ("rotation", "wanted"),
    [
        (90, ["green", "grey", "red", "grey"]),
        (180, ["grey", "grey", "green", "red"]),
        (270, ["grey", "red", "grey", "green"]),
    ],
)
def test_turned_pictures_are_upright_in_every_container(
    make_video: MakeVideo, name: str, rotation: int, wanted: list[str]
) -> None:
    path = make_video(name, size=(64, 128), rotation=rotation, seconds=1.1)
    form = ClipFormat(128, 64, 1) if rotation % 180 else ClipFormat(64, 128, 1)
    assert corners(path, form) == wanted


def test_mirrored_picture_is_mirrored_back(make_video: MakeVideo) -> None:
    path = make_video("a.mp4", seconds=1.1)
    content = path.read_bytes()
    # The first matrix belongs to the movie, the second to the first track: minus x.
    plain = bytes.fromhex("00010000" + "00" * 12 + "00010000")
    first = content.index(plain)
    second = content.index(plain, first + 1)
    mirrored = content[:second] + bytes.fromhex("ffff0000") + content[second + 4 :]
    path.write_bytes(mirrored)
    assert corners(path, ClipFormat(64, 64, 1)) == ["green", "red", "grey", "grey"]


def test_clean_aperture_of_a_container_is_cut(make_video: MakeVideo) -> None:
    path = make_video("a.mp4", size=(96, 128), seconds=1.1)
    content = path.read_bytes()
    clap = struct.pack(">I4s 8i", 40, b"clap", 64, 1, 64, 1, 32, 1, -16, 1)
    place = content.index(b"avcC") - 4
    grown = bytearray(content[:place] + clap + content[place:])
    # Every box around it grows by its length; the media lie before them, so no offset moves.
    assert content.index(b"mdat") < content.index(b"moov")
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = grown.index(name, content.index(b"moov")) - 4
        size = int.from_bytes(grown[at : at + 4], "big") + len(clap)
        grown[at : at + 4] = size.to_bytes(4, "big")
    path.write_bytes(grown)
    info = probe(path)
    assert (info.height, info.width) == (64, 64)
    # The upper right quarter and more: the red corner lies outside.
    assert corners(path, ClipFormat(64, 64, 1)) == ["grey", "green", "grey", "grey"]


def test_the_default_picture_is_taken_whole(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as out:
        small, large = (out.add_stream("libx264", rate=24) for _ in range(2))
        audio = out.add_stream("aac", rate=16000, layout="stereo")
        for stream, side in ((small, 32), (large, 128)):
            stream.width = stream.height = side
        small.disposition, large.disposition = 0, av.stream.Disposition.default
        for index in range(30):
            for stream, side in ((small, 32), (large, 128)):
                frame = av.VideoFrame.from_ndarray(picture(index / 24, side, side, ()), "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 24)
                out.mux(stream.encode(frame))
        wave = av.AudioFrame.from_ndarray(sound(1.3, 16000, 2, ()), "fltp", "stereo")
        wave.rate, wave.pts, wave.time_base = 16000, 0, Fraction(1, 16000)
        out.mux(audio.encode(wave))
        for stream in (small, large, audio):
            out.mux(stream.encode(None))
    info = probe(path)
    assert (info.height, info.width, info.video_index) == (128, 128, 1)
    assert corners(path, ClipFormat(128, 128, 1)) == ["red", "green", "grey", "grey"]


def test_size_that_changes_on_the_way_fills_the_same_picture(make_video: MakeVideo) -> None:
    one = make_video("one.ts", seconds=1, size=(64, 96))
    two = make_video("two.ts", seconds=1.2, size=(128, 192), output_ts_offset="1")
    joined = one.with_name("joined.ts")
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    video = ClipCutter(joined, ClipFormat(64, 96, 2)).clip(0).video
    first, last = video[2].astype(int), video[-2].astype(int)
    assert np.abs(first - last).mean() < 6


def test_fields_of_interlaced_video_are_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "fields.mp4"

    def bar(moment: int) -> np.ndarray:
        frame = np.full((64, 128, 3), 40, np.uint8)
        frame[:, 4 + 2 * moment : 24 + 2 * moment] = 230
        return frame

    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"x264-params": "tff=1", "crf": "10"})
        audio = out.add_stream("aac", rate=16000, layout="stereo")
        video.width, video.height = 128, 64
        for index in range(28):
            woven = bar(2 * index % 40)
            woven[1::2] = bar((2 * index + 1) % 40)[1::2]
            frame = av.VideoFrame.from_ndarray(woven, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(video.encode(frame))
        wave = av.AudioFrame.from_ndarray(sound(1.2, 16000, 2, ()), "fltp", "stereo")
        wave.rate, wave.pts, wave.time_base = 16000, 0, Fraction(1, 16000)
        out.mux(audio.encode(wave))
        for stream in (video, audio):
            out.mux(stream.encode(None))
    assert probe(path).interlaced
    clip = ClipCutter(path, ClipFormat(64, 128, 1)).clip(0)
    edges = [(frame.mean(2) > 135).argmax(1) for frame in clip.video[3:18]]
    apart = [abs(int(np.median(edge[::2])) - int(np.median(edge[1::2]))) for edge in edges]
    assert np.median(apart) == 0


COLOURS = np.array([(200, 40, 40), (40, 180, 40), (40, 60, 200), (200, 200, 40)], np.uint8)


@pytest.mark.parametrize(
    ("codec", "pixels", "name"), [("libvpx-vp9", "yuva420p", "a.webm"), ("qtrle", "argb", "a.mov")]
)
def test_transparent_pictures_are_composed_on_black(
    tmp_path: Path, codec: str, pixels: str, name: str
) -> None:
    half = np.full((64, 64, 4), 200, np.uint8)
    half[:, :, 3] = np.where(np.arange(64) < 32, 255, 0)
    with av.open(str(tmp_path / name), "w") as out:
        video = out.add_stream(codec, rate=24, options={"auto-alt-ref": "0"})
        video.width = video.height = 64
        video.pix_fmt = pixels
        heard = out.add_stream("libopus" if name == "a.webm" else "pcm_s16le", rate=48000)
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 110_000), np.int16), "s16", "stereo")
        wave.rate, wave.pts, wave.time_base = 48000, 0, Fraction(1, 48000)
        out.mux(heard.encode(wave))
        for index in range(52):
            frame = av.VideoFrame.from_ndarray(half, "rgba")
            frame.pts, frame.time_base = index, Fraction(1, 24)
            out.mux(video.encode(frame))
        for stream in (video, heard):
            out.mux(stream.encode(None))
    shown = ClipCutter(tmp_path / name, FORM).clip(0).video[10]
    assert np.abs(shown[:, :24].astype(int) - 200).max() <= 4
    assert shown[:, 40:].max() <= 4


def coloured(path: Path, codec: str, pixels: str, number: int, full: bool = False) -> Path:
    """Write a second of stripes of ``COLOURS``, whose matrix and range the encoder is told."""
    from av.video.reformatter import ColorRange, Colorspace

    image = np.repeat(np.repeat(COLOURS[None], 64, 0), 16, 1)
    space = {6: Colorspace.ITU601, 1: Colorspace.ITU709, 9: Colorspace.BT2020}[number]
    coded = ColorRange.JPEG if full else ColorRange.MPEG
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=24, options={"crf": "4"} if codec == "libx264" else {})
        audio = out.add_stream("flac" if path.suffix == ".mkv" else "pcm_s16le", rate=16000)
        video.width = video.height = 64
        video.pix_fmt = pixels
        video.codec_context.colorspace, video.codec_context.color_range = number, coded
        if number == 1:  # MP4 states all three or none
            video.codec_context.color_primaries = video.codec_context.color_trc = number
        for index in range(26):
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(
                format=pixels, dst_colorspace=space, dst_color_range=coded
            )
            frame.colorspace = 2  # a frame that states nothing: the encoder's word counts
            frame.pts, frame.time_base = index, Fraction(1, 24)
            out.mux(video.encode(frame))
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 36000), np.int16), "s16", "stereo")
        wave.rate, wave.pts, wave.time_base = 16000, 0, Fraction(1, 16000)
        out.mux(audio.encode(wave))
        for stream in (video, audio):
            out.mux(stream.encode(None))
    return path


def assert_colours(path: Path) -> None:
    frame = ClipCutter(path, ClipFormat(64, 64, 1)).clip(0).video[3]
    assert np.abs(frame[32, 8::16].astype(int) - COLOURS).max() <= 4


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "number"), [("bt601", 6), ("bt709", 1), ("bt2020", 9)])
def test_colours_are_read_by_matrix_and_range(
    tmp_path: Path, matrix: str, number: int, full: bool
) -> None:
    path = coloured(tmp_path / "a.mkv", "libx264", "yuv444p", number, full)
    assert_colours(path)
    assert probe(path).colour == f"{matrix} {'pc' if full else 'tv'}"


@pytest.mark.parametrize("name", ["a.mov", "a.mkv"])
def test_colours_that_the_container_states_alone_are_read(tmp_path: Path, name: str) -> None:
    path = coloured(tmp_path / name, "prores_ks", "yuv444p10le", 1)
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).colorspace == 2
    assert_colours(path)
    assert probe(path).colour == "bt709 tv"


@pytest.mark.parametrize(
    ("curve", "signal", "level"),
    [
        ("pq", 0.0, 0),
        ("pq", 0.5081, 190),  # 100 cd/m2 of 203: (100 / 203) ** (1 / 2.4)
        ("hlg", 0.5, 143),  # 1/12 of the scene's peak, 50.7 cd/m2
        ("pq", 0.7518, 255),  # 1000 cd/m2
        ("hlg", 1.0, 255),
    ],
)
def test_grey_of_high_dynamic_range_has_its_place_below_white(
    curve: str, signal: float, level: int
) -> None:
    from av.video.reformatter import Colorspace

    pixels = np.full((1, 1, 3), round(signal * 65535), np.uint16)
    found = convert(pixels, Colour(Colorspace.BT2020, False, curve, 9, ""))
    assert np.abs(found.astype(int) - level).max() <= 1


# --- sound --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mov"])
def test_two_channels_are_left_and_right_also_where_the_file_names_none(
    make_video: MakeVideo, name: str
) -> None:
    path = make_video(name, audio="pcm_s16le", rate=48000, samples=two_tones(2, 48000))
    assert tones(path) == pytest.approx(np.diag([0.3, 0.3]), abs=0.003)


@pytest.mark.parametrize(
    ("layout", "gain", "codec"),
    [
        ("2.1", 1.0, "pcm_s16le"),
        ("quad", 1 / (1 + 0.5**0.5), "pcm_s16le"),
        ("7.1", 1 / (1 + 3 * 0.5**0.5), "pcm_s16le"),
        ("7.1", 1 / (1 + 3 * 0.5**0.5), "aac"),  # eight planes
        ("downmix", 1, "pcm_s16le"),
    ],
)
def test_layouts_are_mixed_at_their_stated_gain(
    make_video: MakeVideo, layout: str, gain: float, codec: str
) -> None:
    channels = av.AudioLayout(layout).nb_channels
    samples = two_tones(channels, 48000)
    path = make_video("a.mov", audio=codec, rate=48000, layout=layout, samples=samples)
    assert tones(path) == pytest.approx(0.3 * gain * np.eye(2), abs=0.004)


def test_channels_that_frames_leave_unnamed_are_mixed_by_the_headers_names() -> None:
    frame = av.AudioFrame.from_ndarray(np.eye(7, 100, dtype=np.float32), "fltp", "7C")
    frame.rate = 48000
    names = ["FL", "FR", "FC", "LFE", "SL", "SR", "BC"]
    gain = 1 / (1 + 3 * 0.5**0.5)
    shares = gain * np.array([[1, 0, 0.5**0.5, 0, 0.5**0.5, 0, 0.5**0.5]])
    assert stereo(frame, names)[:1, :7] == pytest.approx(shares, abs=1e-6)
    # Names of other channels than those that came are not taken.
    assert np.array_equal(stereo(frame, names[:6]), stereo(frame))


def two_sounds(
    path: Path,
    default: int,
    languages: Sequence[str] = ("eng", "deu"),
    layouts: Sequence[str] = ("stereo", "stereo"),
) -> Path:
    """A file whose first sound is the first tone in all channels, and whose second is the second.

    Mono sounds are PCM, others AAC.
    """
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=24)
        video.width = video.height = 64
        mono = layouts[0] != "stereo"
        codec, form = ("pcm_f32le", "flt") if mono else ("aac", "fltp")
        sounds = [out.add_stream(codec, rate=16000, layout=layout) for layout in layouts]
        for index, stream in enumerate(sounds):
            stream.metadata["language"] = languages[index]
            stream.disposition = av.stream.Disposition.default if index == default else 0
        for index in range(50):
            frame = av.VideoFrame.from_ndarray(picture(index / 24, 64, 64, ()), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 24)
            out.mux(video.encode(frame))
        at = np.arange(34000) / 16000
        for tone, stream in zip(TONES, sounds, strict=True):
            samples = np.repeat(0.3 * np.sin(2 * np.pi * tone * at)[None], 1 if mono else 2, 0)
            layout = stream.codec_context.layout
            wave = av.AudioFrame.from_ndarray(samples.astype(np.float32), form, layout)
            wave.rate, wave.pts, wave.time_base = 16000, 0, Fraction(1, 16000)
            out.mux(stream.encode(wave))
        for stream in (video, *sounds):
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_the_sound_that_players_play_is_taken_and_a_wanted_language_before_it(
    tmp_path: Path, name: str
) -> None:
    path = two_sounds(tmp_path / name, default=1)
    assert probe(path).audio_index == 2
    assert tones(path)[:, 1] == pytest.approx([0.3, 0.3], rel=0.05)
    assert probe(path, "eng").audio_index == 1


@pytest.mark.parametrize(
    ("layouts", "heard"),
    [
        (("FL", "FR"), [[0.3, 0], [0, 0.3]]),
        (("FR", "FL"), [[0, 0.3], [0.3, 0]]),
        (("FL", "FC"), [[0.3, 0], [0.3, 0]]),  # no pair: the first, as players
        (("mono", "mono"), [[0.3, 0], [0.3, 0]]),
    ],
)
def test_tracks_that_are_named_left_and_right_are_one_sound(
    tmp_path: Path, layouts: tuple[str, str], heard: list[list[float]]
) -> None:
    path = two_sounds(tmp_path / "a.mov", 0, ("eng", "eng"), layouts)
    assert tones(path) == pytest.approx(np.array(heard), abs=0.015)
    assert ClipCutter(path, FORM).clip(0).audio.shape == (2, 32000)


def without_decoder(path: Path, track: int) -> Path:
    """Give a sound of an mp4 a codec that nobody knows."""
    data = bytearray(path.read_bytes())
    for name, other in ((b"mp4a", b"apac"), (b"esds", b"xsds")):
        place = data.index(name)
        for _ in range(track):
            place = data.index(name, place + 4)
        data[place : place + 4] = other
    path.write_bytes(data)
    return path


def test_a_track_of_an_unknown_codec_is_none(tmp_path: Path) -> None:
    path = without_decoder(two_sounds(tmp_path / "a.mp4", default=0), track=0)
    assert probe(path).audio_index == 2
    assert tones(path)[:, 1] == pytest.approx([0.3, 0.3], rel=0.05)
    with pytest.raises(Rejected) as error:
        probe(without_decoder(path, track=0))
    assert error.value.reason == "no decoder" and "sound" in error.value.detail


def test_rate_and_channels_may_change_within_a_track(make_video: MakeVideo) -> None:
    one = make_video("one.ts", seconds=2, audio="mp2", rate=48000, events=EVENTS)
    changes: list[dict[str, Any]] = [{"rate": 44100}, {"rate": 48000, "layout": "mono"}]
    for index, how in enumerate(changes):
        how |= {"audio": "mp2", "events": EVENTS, "output_ts_offset": "2"}
        two = make_video(f"two{index}.ts", seconds=2.2, **how)
        joined = one.with_name(f"joined{index}.ts")
        joined.write_bytes(one.read_bytes() + two.read_bytes())
        assert_in_sync(joined, HALF_A_FRAME)


# --- one file never ends a stage ----------------------------------------------------------------


def _cuts(path: Path) -> int:
    return ClipCutter(path, FORM).cuts


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    time.sleep(1000)


def _fail() -> None:
    raise ValueError("a library's own error\nwith its last line")


def test_a_decoder_that_dies_hangs_or_fails_costs_one_file(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video("a.mp4", seconds=4.1)
    with Isolated() as isolated:
        for function, reason in ((_crash, "decoder crashed"), (_fail, "decoder failed")):
            with pytest.raises(Rejected) as error:
                isolated(function)
            assert error.value.reason == reason
            assert "\n" not in error.value.detail
            assert isolated(_cuts, path) == 2
        monkeypatch.setattr("omniforcing.media.reading.isolated.PATIENCE", 0.5)
        with pytest.raises(Rejected) as error:
            isolated(_hang)
        assert error.value.reason == "decoder hangs"
        monkeypatch.undo()
        assert isolated(_cuts, path) == 2
