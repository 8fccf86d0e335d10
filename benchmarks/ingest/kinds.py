"""Kinds of files, and how each is made by the ffmpeg command line, PyAV, mkvmerge or GStreamer."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

from benchmarks.ingest.truth import (
    CORNERS,
    HEIGHT,
    LEVEL,
    RATE,
    SECONDS,
    WIDTH,
    hdr_signal,
    numbered,
    picture,
    sound,
)

X264 = "-c:v libx264 -preset veryfast -crf 10 -pix_fmt yuv420p"
AAC = "-c:a aac -b:a 160k"
PATIENCE = 120  # seconds
SIDES = ((LEVEL, 0.0), (0.0, LEVEL))
BOTH = ((LEVEL * 0.5**0.5,) * 2,) * 2  # as ffmpeg mixes two sides into one


# Makes a file at a path.
Make = Callable[[Path, "Sources"], None]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: name of the file.
        tool: program that makes it.
        make: makes it at a path, given ``Sources``.
        fps: rate of its pictures.
        moved: seconds by which the picture is later than in its source, against the sound.
        size: height and width of the upright picture.
        corners: colours of its corners.
        tones: level of each tone in each side.
        stamps: times of its pictures; those of ``fps`` if empty.
        every: step of the numbers of the pictures that are shown.
        lost: cuts that must be rejected, as the file is damaged there.
        reject: reason for which the whole file must be rejected; empty if it must not.
    """

    name: str
    tool: str
    make: Make
    fps: float = 24
    moved: float = 0.0
    size: tuple[int, int] = (HEIGHT, WIDTH)
    corners: tuple[tuple[int, ...], ...] = CORNERS
    tones: tuple[tuple[float, ...], ...] = SIDES
    stamps: tuple[float, ...] = field(default=())
    every: int = 1
    lost: tuple[int, ...] = ()
    reject: str = ""

    @property
    def wanted(self) -> dict[str, object]:
        """What ``measure`` compares with."""
        stamps = self.stamps or tuple(time for _, time in numbered(self.fps))
        return {
            "stamps": [time + self.moved for time in stamps],
            "height": self.size[0],
            "width": self.size[1],
            "corners": self.corners,
            "tones": self.tones,
            "every": self.every,
            "lost": self.lost,
        }


@dataclass(frozen=True)
class Sources:
    """Lossless sources of the command lines in one folder."""

    folder: Path

    def video(self, fps: float = 24, seconds: float = SECONDS, size: int = 1) -> Path:
        """Write the pictures at a rate as FFV1, once; ``size`` times as large."""
        path = self.folder / f"{fps:g}-{seconds:g}-{size}.nut"
        if not path.exists():
            with av.open(str(path), "w") as out:
                stream = out.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
                stream.width, stream.height, stream.pix_fmt = WIDTH * size, HEIGHT * size, "bgr0"
                for number, _ in numbered(fps, seconds):
                    image = picture(number, HEIGHT * size, WIDTH * size)
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
                out.mux(stream.encode(None))
        return path

    def audio(self, rate: int = RATE, channels: int = 2, seconds: float = SECONDS) -> Path:
        """Write the sound as WAV, once."""
        path = self.folder / f"{rate}-{channels}-{seconds:g}.wav"
        if not path.exists():
            samples = np.rint(sound(seconds, rate, channels) * 32767).astype(np.int16)
            layout = {1: "mono", 2: "stereo", 4: "quad", 6: "5.1", 8: "7.1"}[channels]
            with av.open(str(path), "w") as out:
                stream = out.add_stream("pcm_s16le", rate=rate, layout=layout)
                packed = np.ascontiguousarray(samples.T).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
                frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
                out.mux(stream.encode(frame))
                out.mux(stream.encode(None))
        return path


def run(*words: object) -> None:
    """Run a program; its errors are those of this one, also that it hangs."""
    command = [str(word) for word in words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"{words[0]}: not done after {PATIENCE} s") from late
    if answer.returncode:
        raise RuntimeError(f"{words[0]}: {answer.stderr.strip().splitlines()[-1:]}")


def ffmpeg(*words: object) -> None:
    """Run the ffmpeg command line; a text with spaces is several words."""
    split = [part for word in words for part in (word.split() if isinstance(word, str) else [word])]
    run(get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", *split)


def encoded(
    options: str, fps: float = 24, filters: str = "", rate: int = RATE, channels: int = 2
) -> Make:
    """Encode the sources by one ffmpeg command."""

    def make(path: Path, sources: Sources) -> None:
        more = ["-vf", Path(filters)] if filters else []  # a Path is not split at spaces
        ffmpeg("-i", sources.video(fps), "-i", sources.audio(rate, channels), *more, options, path)

    return make


def copied(first: str, arguments: str, before: str = "", suffix: str = ".mp4") -> Make:
    """Encode once, then copy without encoding: ``before`` stands before the input."""

    def make(path: Path, sources: Sources) -> None:
        whole = path.with_name(f"whole-{path.stem}{suffix}")
        encoded(first)(whole, sources)
        ffmpeg(before, "-i", whole, "-c copy", arguments, path)
        whole.unlink()

    return make


def mirrored(content: bytes) -> bytes:
    """Turn the matrix of the first track of an mp4 into a mirror's."""
    plain = bytes.fromhex("00010000" + "00" * 12 + "00010000")
    place = content.index(plain, content.index(plain) + 1)
    return content[:place] + bytes.fromhex("ffff0000") + content[place + 4 :]


def mirrored_mp4(path: Path, sources: Sources) -> None:
    """A front camera's mp4: stored mirrored, with a matrix that mirrors it back."""
    encoded(f"{X264} {AAC}", filters="hflip")(path, sources)
    path.write_bytes(mirrored(path.read_bytes()))


def joined(path: Path, sources: Sources) -> None:
    """Two recordings in one TS, the second 100 s later on its clock."""
    video, audio = sources.video(24), sources.audio()
    parts = [path.with_name(f"part{n}-{path.name}") for n in range(2)]
    ffmpeg("-t 3 -i", video, "-t 3 -i", audio, X264, "-c:a mp2 -b:a 256k", parts[0])
    late = "-output_ts_offset 103"
    ffmpeg("-ss 3 -i", video, "-ss 3 -i", audio, X264, "-c:a mp2 -b:a 256k", late, parts[1])
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()


def variable(path: Path, _sources: Sources) -> None:
    """A phone in low light: 30 fps, then 15, then 30."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=30, options={"crf": "10"})
        audio = out.add_stream("aac", rate=RATE, layout="stereo")
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.time_base = Fraction(1, 600)
        for number, time in enumerate(VARIABLE):
            frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
            frame.pts, frame.time_base = round(time * 600), Fraction(1, 600)
            out.mux(video.encode(frame))
        wave = av.AudioFrame.from_ndarray(sound(), "fltp", "stereo")
        wave.rate, wave.pts, wave.time_base = RATE, 0, Fraction(1, RATE)
        out.mux(audio.encode(wave))
        for stream in (video, audio):
            out.mux(stream.encode(None))


def _variable() -> tuple[float, ...]:
    times = [0.0]
    while times[-1] < SECONDS:
        times.append(round(times[-1] + (1 / 15 if 2 <= times[-1] < 4 else 1 / 30), 9))
    return tuple(times)


VARIABLE = _variable()


def hdr(curve: str) -> Make:
    """A camera's HDR: ten bits, wide primaries, and one of the two curves."""

    def make(path: Path, sources: Sources) -> None:
        deep = path.with_name(f"deep-{path.stem}.nut")
        with av.open(str(deep), "w") as out:
            stream = out.add_stream("ffv1", rate=24)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "gbrp16le"
            for number, _ in numbered(24):
                image = hdr_signal(picture(number), curve)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb48le")))
            out.mux(stream.encode(None))
        options = f"-c:v libx265 -preset ultrafast -crf 4 -x265-params log-level=none {AAC}"
        filters = "scale=out_color_matrix=bt2020:out_range=tv,format=yuv444p10,format=yuv420p10"
        filters += f",{stated('bt2020nc', 'bt2020', curve)}"
        ffmpeg("-i", deep, "-i", sources.audio(), "-vf", Path(filters), options, path)
        deep.unlink()

    return make


def drifting(path: Path, sources: Sources) -> None:
    """A recorder whose sound card is slow: 0.3 % fewer samples than their stamps say."""
    slow = RATE * 0.997
    samples = np.rint(sound(rate=slow) * 32767).astype(np.int16)
    with av.open(str(path), "w") as out, av.open(str(sources.video(24))) as pictures:
        video = out.add_stream("libx264", rate=24, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        for frame in pictures.decode(video=0):
            out.mux(video.encode(frame.reformat(format="yuv420p")))
        out.mux(video.encode(None))
        for first in range(0, samples.shape[1], 2400):
            part = np.ascontiguousarray(samples[:, first : first + 2400].T).reshape(1, -1)
            wave = av.AudioFrame.from_ndarray(part, "s16", "stereo")
            wave.rate, wave.pts, wave.time_base = RATE, round(first / 0.997), Fraction(1, RATE)
            out.mux(audio.encode(wave))
        out.mux(audio.encode(None))


def interlaced(order: str) -> Make:
    """A camera of 50 fields a second; a frame is its first field's picture, made whole."""
    first = {"top": "interleave_top", "bottom": "interleave_bottom"}[order]

    def make(path: Path, sources: Sources) -> None:
        filters = Path(f"tinterlace={first},{by_matrix('bt601')}")
        flags = f"-flags +ilme+ildct -x264-params {order[0]}ff=1"
        ffmpeg(
            "-i", sources.video(50), "-i", sources.audio(), "-vf", filters, X264, flags, AAC, path
        )

    return make


def mkvmerge(arguments: tuple[str, ...] = ()) -> Make:
    """Remux an mp4 to Matroska by mkvmerge."""

    def make(path: Path, sources: Sources) -> None:
        whole = path.with_suffix(".mp4")
        encoded(f"{X264} -bf 2 {AAC}")(whole, sources)
        run("mkvmerge", "-q", "-o", path, *arguments, whole)
        whole.unlink()

    return make


def gstreamer(encoders: str, muxer: str) -> Make:
    """Encode by a GStreamer pipeline; ``encoders`` holds one for picture and sound each."""

    def make(path: Path, sources: Sources) -> None:
        mjpeg, wave = path.with_name(f"{path.stem}-source.mkv"), sources.audio()
        ffmpeg("-i", sources.video(24), "-c:v ffv1 -pix_fmt yuv420p", mjpeg)
        picture_coder, sound_coder = encoders.split("|")
        line = (
            f"filesrc location={mjpeg} ! matroskademux ! avdec_ffv1 ! videoconvert ! "
            f"{picture_coder} ! queue ! mux. filesrc location={wave} ! wavparse ! audioconvert ! "
            f"{sound_coder} ! queue ! mux. {muxer} name=mux ! filesink location={path}"
        )
        run("gst-launch-1.0", "-q", *line.split())
        mjpeg.unlink()

    return make


def _tagged(matrix: str, filters_matrix: str, full: bool = False) -> str:
    coder = X264.replace("yuv420p", "yuvj420p") if full else X264
    tags = stated(matrix, matrix, matrix, full)
    return f"{coder} {AAC}|{by_matrix(filters_matrix, full)},{tags}"


def stated(matrix: str, primaries: str, curve: str, full: bool = False) -> str:
    """Filter that states colours, as the encoder's options for them no longer do (ffmpeg 9.0)."""
    colours = f"colorspace={matrix}:color_primaries={primaries}:color_trc={curve}"
    return f"setparams={colours}:range={'full' if full else 'limited'}"


# Filter that takes back what others state.
UNSTATED = "setparams=colorspace=unknown:range=unknown"


def by_matrix(name: str, full: bool = False) -> str:
    """Filters that convert RGB by a matrix to 4:2:0 of a range, which the file does not state."""
    # Converted to planar 4:4:4 in the same step: a later one would use another matrix.
    levels = "pc" if full else "tv"
    planar = "yuvj4{}p" if full else "yuv4{}p"
    formats = f"format={planar.format(44)},format={planar.format(20)}"
    return f"scale=out_color_matrix={name}:out_range={levels},{formats},{UNSTATED}"


def _with_filter(text: str) -> Make:
    options, filters = text.split("|")
    return encoded(options, filters=filters)


def kinds() -> list[Kind]:
    """List every kind whose program is installed here or not."""
    made: list[Kind] = []

    def add(name: str, make: Make, tool: str = "ffmpeg", **how: object) -> None:
        made.append(Kind(name, tool, make, **how))  # type: ignore[arg-type]

    # Containers and codecs.
    for suffix in ("mp4", "mov", "mkv", "ts", "flv", "m4v", "mts"):
        add(f"h264.{suffix}", encoded(f"{X264} {AAC}"))
    add("h264.3gp", encoded(f"{X264} -c:a aac -ar 8000 -ac 1"), tones=BOTH)
    x265 = "-c:v libx265 -preset ultrafast -crf 10 -x265-params log-level=none -pix_fmt yuv420p"
    for suffix in ("mp4", "mkv", "ts"):
        add(f"hevc.{suffix}", encoded(f"{x265} {AAC}"))
    add("hevc_10_bit.mp4", encoded(f"{x265.replace('yuv420p', 'yuv420p10le')} {AAC}"))
    vp8, vp9 = "-c:v libvpx -b:v 3M", "-c:v libvpx-vp9 -b:v 3M -cpu-used 8"
    add("vp8.webm", encoded(f"{vp8} -c:a libvorbis -b:a 192k"))
    add("vp8_hidden_frames.webm", encoded(f"{vp8} -auto-alt-ref 1 -lag-in-frames 16 -c:a libopus"))
    add("vp9.webm", encoded(f"{vp9} -c:a libopus -b:a 160k"))
    add("av1.mp4", encoded(f"-c:v libsvtav1 -preset 10 -crf 15 -pix_fmt yuv420p {AAC}"))
    add("prores.mov", encoded("-c:v prores_ks -profile:v 3 -c:a pcm_s16le"))
    add("mjpeg.mov", encoded(f"-c:v mjpeg -q:v 2 -pix_fmt yuvj420p {AAC}"))
    add("mjpeg.avi", encoded("-c:v mjpeg -q:v 2 -pix_fmt yuvj420p -c:a pcm_s16le"))
    add("raw.avi", encoded("-c:v rawvideo -pix_fmt yuv420p -c:a pcm_s16le"))
    add("huffyuv.avi", encoded("-c:v huffyuv -c:a pcm_s16le"))
    add("ffv1.mkv", encoded("-c:v ffv1 -c:a flac"))
    add("mpeg4_b.avi", encoded("-c:v mpeg4 -bf 2 -q:v 2 -c:a pcm_s16le"))
    add("mpeg4_b.mp4", encoded(f"-c:v mpeg4 -bf 2 -g 50 -q:v 2 {AAC}"))
    add("h264_b.avi", encoded(f"{X264} -bf 3 -c:a pcm_s16le"))
    add("wmv2.wmv", encoded("-c:v wmv2 -q:v 2 -c:a wmav2 -b:a 192k"))
    add("flv1.flv", encoded("-c:v flv1 -q:v 2 -ar 44100 -c:a libmp3lame -b:a 320k -joint_stereo 0"))
    add("theora.ogv", encoded("-c:v libtheora -q:v 9 -c:a libvorbis -b:a 192k"))
    mpeg2 = "-c:v mpeg2video -q:v 2 -bf 2 -c:a mp2 -b:a 256k"
    for suffix in ("mpg", "ts", "mkv", "vob"):
        add(f"mpeg2_b.{suffix}", encoded(mpeg2))
    add("mpeg2.mxf", encoded("-c:v mpeg2video -q:v 2 -bf 2 -c:a pcm_s16le"))
    # Rates.
    for fps in (15, 25, 29.97, 30, 50, 60):
        add(
            f"{fps:g}_fps.mp4",
            encoded(f"{X264} -bf 2 {AAC}", fps),
            fps=fps if fps != 29.97 else 30000 / 1001,
        )
    add("variable_rate.mp4", variable, "PyAV", stamps=VARIABLE, fps=30)
    # Groups of pictures, heads, trims and clocks.
    opened = "-x264-params open-gop=1:keyint=24:bframes=3"
    add("open_groups.mp4", encoded(f"{X264} -preset medium {opened} {AAC}"))
    add("open_groups.ts", encoded(f"{X264} -preset medium {opened} {AAC}"))
    open_hevc = x265.replace("none", "none:open-gop=1:keyint=24:bframes=4")
    add("open_groups_hevc.mp4", encoded(f"{open_hevc} {AAC}"))
    add("open_groups_hevc.mkv", encoded(f"{open_hevc} {AAC}"))
    add("intra_refresh.mp4", encoded(f"{X264} -bf 0 -x264-params intra-refresh=1:keyint=48 {AAC}"))
    groups = f"{X264} -g 48 -bf 2 {AAC}"
    add("trimmed.mp4", copied(groups, "", "-ss 1.3"))
    add("trimmed.mkv", copied(groups, "", "-ss 1.3"))
    add("trimmed_negative.mp4", copied(groups, "-avoid_negative_ts disabled", "-ss 1.3"))
    add("trimmed_behind.mp4", copied(groups, "-ss 1.3"))
    add("head_cut.mkv", copied(f"{open_hevc} {AAC}", "", "-ss 2.3"))
    add("clock_wraps.ts", encoded(f"{X264} {AAC} -output_ts_offset {2**33 / 90000 - 3}"))
    add("joined.ts", joined)
    add("fragmented.mp4", encoded(f"{X264} -g 24 {AAC} -movflags frag_keyframe+empty_moov"))
    add("fragmented_b.mp4", encoded(f"{groups} -movflags frag_keyframe -frag_duration 2000000"))
    add("live.webm", encoded(f"{vp8} -deadline realtime -c:a libopus -b:a 160k -f webm -live 1"))
    add("no_index.flv", encoded(f"{X264} {AAC} -flvflags no_duration_filesize"))
    late = f"{X264} {AAC}"
    for suffix in ("mp4", "mkv", "ts"):
        add(f"sound_late.{suffix}", _late(late, sound_late=True), moved=-0.5)
        add(f"picture_late.{suffix}", _late(late, sound_late=False), moved=0.5)
    # Geometry.
    for angle in (90, 180, 270):
        add(f"turned_{angle}.mp4", _turned(angle))
        add(f"turned_{angle}.mkv", _turned(angle), "mkvpropedit")
    add("mirrored.mp4", mirrored_mp4)
    add("cropped_by_container.mkv", _cropped, "mkvpropedit")
    add("wide_pixels.mp4", encoded(f"{X264} {AAC}", filters="scale=192:160,setsar=4/3"))
    add("cover_first.mp4", _cover)
    add("two_pictures.mp4", _two_pictures)
    # Colours.
    add("bt601_tagged.mp4", _with_filter(_tagged("smpte170m", "bt601")))
    add("bt709_tagged.mp4", _with_filter(_tagged("bt709", "bt709")))
    add("bt601_full.mp4", _with_filter(_tagged("smpte170m", "bt601", True)))
    add("bt709_full.mp4", _with_filter(_tagged("bt709", "bt709", True)))
    add("untagged_sd.mp4", encoded(f"{X264} {AAC}", filters=by_matrix("bt601")))
    large = f"scale=1280:800:out_color_matrix=bt709,format=yuv444p,format=yuv420p,{UNSTATED}"
    add("untagged_hd.mp4", encoded(f"{X264} {AAC}", filters=large))
    add("rgb.mkv", encoded(f"-c:v libx264rgb -preset veryfast -crf 8 -pix_fmt rgb24 {AAC}"))
    for name, curve in (("pq", "smpte2084"), ("hlg", "arib-std-b67")):
        add(f"hdr_{name}.mp4", hdr(curve))
        add(f"hdr_{name}.mkv", hdr(curve))
    add("interlaced_top.mp4", interlaced("top"), fps=25, every=2)
    add("interlaced_bottom.mkv", interlaced("bottom"), fps=25, every=2)
    # Sound.
    add("pcm_24_bit.mov", encoded(f"{X264} -c:a pcm_s24le"))
    add("unnamed_channels.avi", encoded(f"{X264} -bf 0 -c:a pcm_s16le"))
    add("unnamed_channels.mkv", encoded(f"{X264} -c:a pcm_s16le"))
    add("mono.mp4", encoded(f"{X264} {AAC}", channels=1), tones=((LEVEL, 0.0), (LEVEL, 0.0)))
    gain = 1 / (1 + 2 * 0.5**0.5)
    mixed = ((LEVEL * gain, 0.0), (0.0, LEVEL * gain))
    add("surround.mp4", encoded(f"{X264} -c:a aac -b:a 400k", channels=6), tones=mixed)
    add("surround.mkv", encoded(f"{X264} -c:a ac3 -b:a 640k", channels=6), tones=mixed)
    gain = 1 / (1 + 3 * 0.5**0.5)
    mixed = ((LEVEL * gain, 0.0), (0.0, LEVEL * gain))
    add("surround_7_1.mkv", encoded(f"{X264} -c:a flac", channels=8), tones=mixed)
    gain = 1 / (1 + 0.5**0.5)
    mixed = ((LEVEL * gain, 0.0), (0.0, LEVEL * gain))
    add("quad.mkv", encoded(f"{X264} -c:a flac", channels=4), tones=mixed)
    add("sound_drifts.mkv", drifting, "PyAV")
    add("rate_44100.mp4", encoded(f"{X264} {AAC} -ar 44100"))
    add("second_sound_is_default.mkv", _second_sound)
    add("longer_second_sound.mp4", _longer_sound)
    # Other muxers.
    add("mkvmerge.mkv", mkvmerge(), "mkvmerge")
    add("mkvmerge_late.mkv", mkvmerge(("--sync", "1:500")), "mkvmerge", moved=-0.5)
    add(
        "gst.mp4",
        gstreamer(
            "x264enc tune=zerolatency quantizer=10 pass=quant|opusenc bitrate=192000", "mp4mux"
        ),
        "gst-launch-1.0",
    )
    add(
        "gst.mkv",
        gstreamer("x264enc quantizer=10 pass=quant|flacenc", "matroskamux"),
        "gst-launch-1.0",
    )
    add(
        "gst.ts",
        gstreamer("x264enc quantizer=10 pass=quant|avenc_mp2 bitrate=256000", "mpegtsmux"),
        "gst-launch-1.0",
    )
    add(
        "gst.webm",
        gstreamer("vp8enc target-bitrate=3000000|vorbisenc", "webmmux"),
        "gst-launch-1.0",
    )
    return made


def _late(options: str, sound_late: bool) -> Make:
    def make(path: Path, sources: Sources) -> None:
        whole = path.with_name(f"whole-{path.stem}.mp4")
        encoded(options)(whole, sources)
        moved, plain = ("1:a", "0:v") if sound_late else ("1:v", "0:a")
        ffmpeg("-i", whole, "-itsoffset 0.5 -i", whole, f"-map {plain} -map {moved} -c copy", path)
        whole.unlink()

    return make


def _cropped(path: Path, sources: Sources) -> None:
    """A picture in a wider one, with the container's wish to cut the rest."""
    encoded(f"{X264} {AAC}", filters="pad=320:200:32:20")(path, sources)
    sides = (("top", 20), ("bottom", 20), ("left", 32), ("right", 32))
    wishes = [word for side, by in sides for word in ("--set", f"pixel-crop-{side}={by}")]
    run("mkvpropedit", path, "--edit", "track:v1", *wishes)


def _turned(angle: int) -> Make:
    """Store the picture turned, with a tag that turns it upright."""
    turn = {90: "transpose=1", 180: "hflip,vflip", 270: "transpose=2"}[angle]

    def make(path: Path, sources: Sources) -> None:
        whole = path.with_name(f"whole-{path.name}")
        encoded(f"{X264} {AAC}", filters=turn)(whole, sources)
        if path.suffix == ".mp4":
            ffmpeg(f"-display_rotation {angle} -i", whole, "-c copy", path)
            whole.unlink()
            return
        roll = angle if angle <= 180 else angle - 360
        whole.replace(path)
        pose = ("--set", "projection-type=0", "--set", f"projection-pose-roll={roll}")
        run("mkvpropedit", path, "--edit", "track:v1", *pose)

    return make


def _cover(path: Path, sources: Sources) -> None:
    png = path.with_suffix(".png")
    ffmpeg("-i", sources.video(24), "-frames:v 1 -vf hflip", png)
    maps = "-map 2:v -map 0:v -map 1:a"
    ffmpeg(
        "-i",
        sources.video(24),
        "-i",
        sources.audio(),
        "-i",
        png,
        maps,
        "-c:v:0 png -c:v:1 libx264 -crf 10 -pix_fmt:v:1 yuv420p",
        AAC,
        "-disposition:v:0 attached_pic",
        path,
    )
    png.unlink()


def _two_pictures(path: Path, sources: Sources) -> None:
    small = "[0:v]split[a][b];[a]scale=128:80,hflip[s];[b]null[l]"
    ffmpeg(
        "-i",
        sources.video(24),
        "-i",
        sources.audio(),
        "-filter_complex",
        Path(small),
        "-map [s] -map [l] -map 1:a",
        X264,
        AAC,
        "-disposition:v:0 0 -disposition:v:1 default",
        path,
    )


def _second_sound(path: Path, sources: Sources) -> None:
    ffmpeg(
        "-i",
        sources.video(24),
        "-f lavfi -t 6.5 -i anullsrc=r=48000:cl=stereo -i",
        sources.audio(),
        "-map 0:v -map 1:a -map 2:a",
        X264,
        AAC,
        "-disposition:a:0 0 -disposition:a:1 default",
        path,
    )


def _longer_sound(path: Path, sources: Sources) -> None:
    ffmpeg(
        "-i",
        sources.video(24),
        "-i",
        sources.audio(),
        "-f lavfi -t 12 -i sine=f=200:r=48000 -map 0:v -map 1:a -map 2:a",
        X264,
        AAC,
        path,
    )


def installed(tool: str) -> bool:
    """Whether a program is here; PyAV and ffmpeg are part of the environment of development."""
    return tool in ("PyAV", "ffmpeg") or shutil.which(tool) is not None
