"""Rarer kinds: extreme sizes, cut files, old and professional codecs, tracks beside the picture."""

from __future__ import annotations

import struct
from pathlib import Path

import av

from benchmarks.ingest.film import RATE
from benchmarks.ingest.kinds import (
    AAC,
    UNSTATED,
    VARIABLE,
    X264,
    Kind,
    Make,
    Sources,
    by_matrix,
    encoded,
    ffmpeg,
    variable,
)

PCM = "-c:a pcm_s16le"
MP2 = "-c:a mp2 -b:a 256k"
WIDE = f"scale=1920:64:out_color_matrix=bt709,format=yuv444p,format=yuv420p,{UNSTATED}"


def rare() -> list[Kind]:
    """List them, as ``kinds`` does."""
    made: dict[str, Make] = {
        "big_endian.mov": encoded(f"{X264} -c:a pcm_s16be"),
        "float.mov": encoded(f"{X264} -c:a pcm_f32le"),
        "float_big_endian.mov": encoded(f"{X264} -c:a pcm_f32be"),
        "pcm_32_bit.mov": encoded(f"{X264} -c:a pcm_s32le"),
        "pcm.mp4": _pcm_mp4,
        "subtitles.mkv": _subtitles,
        "data.ts": _data,
        "two_programmes.ts": _two_programmes,
        "cineform.mov": encoded(f"-c:v cfhd -quality film1 -pix_fmt yuv422p10le {PCM}"),
        "jpeg2000.mov": encoded(f"-c:v jpeg2000 -pix_fmt yuv444p -q:v 2 {PCM}"),
        "cinepak.avi": encoded(f"-c:v cinepak -max_strips 1 -q:v 1 {PCM}"),
        "svq1.mov": encoded(f"-c:v svq1 -q:v 1 {PCM}"),
        "divx3.avi": encoded(f"-c:v msmpeg4 -q:v 2 {PCM}"),
        "h263.mov": encoded(f"-c:v h263p -q:v 2 {AAC}"),
        "realvideo.rm": encoded("-c:v rv20 -q:v 2 -c:a ac3 -b:a 448k"),
        "vc2.mkv": encoded("-c:v vc2 -b:v 40M -c:a flac", filters=by_matrix("bt709")),
        "truehd.mkv": encoded(f"{X264} -c:a truehd -strict -2"),
        "no_b_frames.mxf": encoded(f"{X264} -g 24 -bf 0 {PCM} -f mxf"),
    }
    cut = {
        "cut_off.ts": f"{X264} -g 24 -bf 2 {MP2}",
        "cut_off.mpg": f"-c:v mpeg2video -q:v 2 -bf 2 {MP2}",
        "cut_off.mkv": f"{X264} -g 24 -bf 2 {AAC}",
        "cut_off.avi": f"-c:v mpeg4 -g 24 -q:v 2 {PCM}",
        "cut_off.flv": f"{X264} -g 24 -bf 2 {AAC}",
        "cut_off.wmv": "-c:v wmv2 -g 24 -q:v 2 -c:a wmav2 -b:a 192k",
        "cut_off.webm": "-c:v libvpx -g 24 -b:v 3M -c:a libvorbis -b:a 192k",
    }
    missing = "not a readable video"
    rounded = tuple(round(time, 3) for time in VARIABLE)  # to Matroska's clock
    return [
        *(Kind(name, "ffmpeg", make) for name, make in made.items()),
        *(Kind(name, "ffmpeg", _cut_off(options)) for name, options in cut.items()),
        Kind("cut_off.mp4", "ffmpeg", _cut_off(f"{X264} {AAC}"), reject=missing),
        Kind(
            "cut_off_behind_index.mp4",
            "ffmpeg",
            _cut_off(f"{X264} {AAC} -movflags +faststart"),
            reject="truncated",
        ),
        Kind(
            "cut_off.mxf",
            "ffmpeg",
            _cut_off(f"-c:v mpeg2video -q:v 2 -bf 2 {PCM}"),
            reject="truncated",
        ),
        Kind("tiny.webm", "ffmpeg", _tiny("-c:v libvpx-vp9 -b:v 3M -c:a libopus"), size=(17, 33)),
        Kind("tiny.mkv", "ffmpeg", _tiny("-c:v ffv1 -pix_fmt bgr0 -c:a flac"), size=(17, 33)),
        Kind("wide.mp4", "ffmpeg", encoded(f"{X264} {AAC}", filters=WIDE), size=(64, 1920)),
        Kind("screen_recorder.mkv", "PyAV", variable, fps=30, stamps=rounded),
        Kind("clean_aperture.mp4", "ffmpeg", _aperture),
        Kind("clean_aperture.mov", "ffmpeg", _aperture),
        Kind("film.ts", "ffmpeg", encoded(f"{X264} -bf 2 {AAC}", float(RATE)), fps=float(RATE)),
    ]


def with_aperture(content: bytes, sides: tuple[int, int, int, int]) -> bytes:
    """Give an mp4, whose index stands at its end, a clean aperture.

    Args:
        content: the file, of H.264.
        sides: width, height, and where the middle lies from the picture's, right and down.
    """
    wide, high, right, down = sides
    clap = struct.pack(">I4s 8i", 40, b"clap", wide, 1, high, 1, right, 1, down, 1)
    place = content.index(b"avcC") - 4
    grown = bytearray(content[:place] + clap + content[place:])
    # Every box around it grows by its length; the media lie before them, so no offset moves.
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = grown.index(name, content.index(b"moov")) - 4
        size = int.from_bytes(grown[at : at + 4], "big") + len(clap)
        grown[at : at + 4] = size.to_bytes(4, "big")
    return bytes(grown)


def _aperture(path: Path, sources: Sources) -> None:
    encoded(f"{X264} {AAC}", filters="pad=320:200:32:10")(path, sources)
    path.write_bytes(with_aperture(path.read_bytes(), (256, 160, 0, -10)))


def _tiny(coders: str) -> Make:
    return encoded(coders, filters="scale=33:17:flags=area")


def _cut_off(options: str) -> Make:
    """A download or a disk that ended: three quarters of a file."""

    def make(path: Path, sources: Sources) -> None:
        encoded(options)(path, sources)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 3 // 4])

    return make


def _pcm_mp4(path: Path, sources: Sources) -> None:
    """PCM in MP4, of ISO/IEC 23003-5, which ffmpeg 5 cannot write."""
    whole = path.with_suffix(".mov")
    encoded(f"{X264} {PCM}")(whole, sources)
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for stream in streams.values():
            stream.codec_context.codec_tag = "\0\0\0\0"
        for packet in old.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    whole.unlink()


def _subtitles(path: Path, sources: Sources) -> None:
    """Subtitles that end later than the picture, and a font."""
    text, font = path.with_suffix(".srt"), path.with_suffix(".ttf")
    text.write_text("1\n00:00:01,000 --> 00:00:20,000\nA line\n")
    font.write_bytes(bytes(1000))
    attach = f"-attach {font} -metadata:s:t mimetype=application/x-truetype-font"
    inputs = ("-i", sources.video(24), "-i", sources.audio(), "-i", text)
    ffmpeg(*inputs, "-map 2 -map 0:v -map 1:a", X264, AAC, "-c:s srt", attach, path)
    text.unlink()
    font.unlink()


def _data(path: Path, sources: Sources) -> None:
    """A drone's TS: a track of data beside the picture."""
    data = path.with_suffix(".bin")
    data.write_bytes(bytes(range(256)) * 40)
    inputs = ("-i", sources.video(24), "-i", sources.audio(), "-f data -i", data)
    ffmpeg(*inputs, "-map 2 -map 0:v -map 1:a -c:d copy", X264, MP2, path)
    data.unlink()


def _two_programmes(path: Path, sources: Sources) -> None:
    """A broadcast of two programmes, of which players take the first."""
    other = Path("[0:v]hflip,scale=128:80[o]")
    tone = "-f lavfi -t 6.5 -i sine=f=200:r=48000"
    inputs = ("-i", sources.video(24), "-i", sources.audio(), tone, "-filter_complex", other)
    programs = "-program title=a:st=0:st=1 -program title=b:st=2:st=3"
    ffmpeg(*inputs, "-map 0:v -map 1:a -map [o] -map 2:a", X264, MP2, programs, path)
