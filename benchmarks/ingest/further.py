"""Further kinds: sound codecs, cameras, recorders and colours that only a container states."""

from __future__ import annotations

import subprocess
from pathlib import Path

from imageio_ffmpeg import get_ffmpeg_exe

from benchmarks.ingest.edits import Cuts, shown, with_edits
from benchmarks.ingest.kinds import (
    AAC,
    LEVEL,
    UNSTATED,
    VARIABLE,
    X264,
    Kind,
    Make,
    Sources,
    by_matrix,
    encoded,
    ffmpeg,
    stated,
    variable,
)
from benchmarks.ingest.truth import CORNERS, SECONDS

PCM = "-c:a pcm_s16le"
BT709 = ("bt709", "bt709", "bt709")
# A second is cut out, so that beeps stay where they are; once within a frame.
TWO_PARTS: Cuts = ((0.0, 2.0), (3.0, SECONDS))
WITHIN_FRAMES: Cuts = ((0.0, 2.01), (3.01, SECONDS))
HALF_SEEN = (CORNERS[0], (0, 0, 0), CORNERS[2], (0, 0, 0))
X265 = "-c:v libx265 -preset ultrafast -crf 6 -x265-params log-level=none"


def further() -> list[Kind]:
    """List them, as ``kinds`` does."""
    opus = "-c:a libopus -b:a 160k"
    fragments = "-movflags frag_keyframe+empty_moov+default_base_moof+delay_moov"
    sd = by_matrix("bt601")
    made: dict[str, Make] = {
        "opus.mp4": encoded(f"{X264} {opus} -strict -2"),
        "flac.mp4": encoded(f"{X264} -c:a flac -strict -2"),
        "alac.mov": encoded(f"{X264} -c:a alac"),
        "eac3.mp4": encoded(f"{X264} -c:a eac3 -b:a 448k"),
        "mp3.mp4": encoded(f"{X264} -c:a libmp3lame -b:a 320k -joint_stereo 0"),
        "adpcm.avi": encoded("-c:v mjpeg -q:v 2 -pix_fmt yuvj420p -c:a adpcm_ms"),
        "bluray.m2ts": encoded(f"{X264} -c:a ac3 -b:a 448k -mpegts_m2ts_mode 1"),
        "dts.mkv": encoded(f"{X264} -c:a dca -strict -2 -b:a 1400k"),
        "rate_96000.mkv": encoded(f"{X264} -c:a flac -ar 96000"),
        "timecode.mov": encoded(f"{X264} {AAC} -timecode 01:00:00:00"),
        "prores_4444.mov": encoded(f"-c:v prores_ks -profile:v 4 -pix_fmt yuva444p10le {PCM}"),
        "dnxhr.mov": encoded(f"-c:v dnxhd -profile:v dnxhr_hq {PCM}", filters=_matrix_422()),
        "stated_by_container.mov": encoded(
            f"-c:v prores_ks -profile:v 3 {PCM}", filters=f"{_matrix_422('p10le')},{stated(*BT709)}"
        ),
        "stated_by_container.mkv": encoded(
            f"-c:v mpeg4 -q:v 2 {AAC}", filters=f"{by_matrix('bt709')},{stated(*BT709)}"
        ),
        "full_422_10_bit.mov": encoded(
            f"{X265} -tag:v hvc1 {AAC}",
            filters=f"{_matrix_422('p10le', 'pc')},{stated(*BT709, full=True)}",
        ),
        "vvc.mp4": encoded(f"-c:v libvvenc -preset faster -qp 12 {AAC}", filters=sd),
        "vvc.ts": encoded("-c:v libvvenc -preset faster -qp 12 -c:a mp2 -b:a 256k", filters=sd),
        "apv.mp4": encoded(f"-c:v liboapv -qp 10 -pix_fmt yuv422p10le {AAC}"),
        "grain_av1.mp4": encoded(
            f"-c:v libsvtav1 -preset 10 -crf 12 -svtav1-params film-grain=8 {AAC}"
        ),
        "palette.mkv": encoded(
            "-c:v png -pix_fmt pal8 -c:a flac",
            filters="split[a][b];[a]palettegen[p];[b][p]paletteuse",
        ),
        "recorder.mp4": encoded(f"{X264} -bf 0 {AAC} {fragments} -frag_duration 1000000"),
        "recorder.mkv": _piped,
        "sound_shorter.mp4": _shorter("-t 6.5", "-t 4.3"),
        "sound_longer.mkv": _shorter("-t 4.3", "-t 6.5"),
        "clock_back.ts": _clock_back,
        "radio_first.ts": _radio_first,
        "two_sides.mov": _two_sides,
    }
    seen: dict[str, Make] = {
        "transparent_vp8.webm": _transparent("-c:v libvpx -b:v 3M -pix_fmt yuva420p", opus),
        "transparent_vp9.webm": _transparent(
            "-c:v libvpx-vp9 -b:v 3M -cpu-used 8 -pix_fmt yuva420p", opus
        ),
        "transparent.mov": _transparent("-c:v qtrle -pix_fmt argb", PCM),
    }
    parts = {
        "two_parts.mp4": (f"{X264} -g 24 -bf 2 {AAC}", TWO_PARTS),
        "two_parts.mov": (f"{X264} -g 24 {PCM}", TWO_PARTS),
        "two_parts_within_frames.mp4": (f"{X264} -g 24 -bf 2 {AAC}", WITHIN_FRAMES),
    }
    odd = encoded("-c:v ffv1 -c:a flac", filters=f"scale=255:159,{sd}")
    fast, film = encoded(f"{X264} {AAC}", 120), 24000 / 1001
    return [
        *(Kind(name, "ffmpeg", make) for name, make in made.items()),
        *(Kind(name, "ffmpeg", make, corners=HALF_SEEN) for name, make in seen.items()),
        *(
            Kind(name, "ffmpeg", _in_parts(coders, cuts), stamps=shown(cuts, round(24 * SECONDS)))
            for name, (coders, cuts) in parts.items()
        ),
        Kind("odd_size.mkv", "ffmpeg", odd, size=(159, 255)),
        Kind("120_fps.mp4", "ffmpeg", fast, fps=120),
        Kind("film.mkv", "ffmpeg", encoded(f"{X264} -bf 2 {AAC}", film), fps=film),
        Kind("phone_turned.mov", "ffmpeg", _phone, fps=30, stamps=VARIABLE),
        Kind("right_side_only.mov", "ffmpeg", _right_side, tones=((0.0, LEVEL), (0.0, LEVEL))),
    ]


def _matrix_422(depth: str = "p", levels: str = "tv") -> str:
    return f"scale=out_color_matrix=bt709:out_range={levels},format=yuv422{depth},{UNSTATED}"


def _piped(path: Path, sources: Sources) -> None:
    """A browser's recorder: written to a pipe, so without length and index."""
    coders = "-c:v libvpx -b:v 3M -deadline realtime -c:a libopus -b:a 160k -f matroska -live 1 -"
    inputs = ["-i", str(sources.video(24)), "-i", str(sources.audio())]
    command = [get_ffmpeg_exe(), "-nostdin", "-v", "error", *inputs, *coders.split()]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)


def _shorter(picture: str, sound: str) -> Make:
    def make(path: Path, sources: Sources) -> None:
        ffmpeg(picture, "-i", sources.video(24), sound, "-i", sources.audio(), X264, AAC, path)

    return make


def _clock_back(path: Path, sources: Sources) -> None:
    """Two recordings in one TS, the second on a clock that begins anew."""
    parts = [path.with_name(f"part{n}-{path.name}") for n in range(2)]
    for cut, part in zip(("-t 3", "-ss 3"), parts, strict=True):
        inputs = (cut, "-i", sources.video(24), cut, "-i", sources.audio())
        ffmpeg(*inputs, X264, "-c:a mp2 -b:a 256k", part)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()


def _phone(path: Path, sources: Sources) -> None:
    """A phone held upright: HEVC, stored turned, at a rate that changes."""
    whole, turned = (path.with_name(f"{name}-{path.name}") for name in ("whole", "turned"))
    variable(whole, sources)
    filters = "-vf transpose=1 -fps_mode passthrough -enc_time_base 1/600"
    ffmpeg("-i", whole, filters, f"{X265} -tag:v hvc1 -c:a copy", turned)
    ffmpeg("-display_rotation 90 -i", turned, "-c copy", path)
    whole.unlink()
    turned.unlink()


def _right_side(path: Path, sources: Sources) -> None:
    """A microphone on one side, stored as mono."""
    pan = ("-filter_complex", Path("[1:a]pan=mono|c0=FR[r]"), "-map 0:v -map [r]")
    ffmpeg("-i", sources.video(24), "-i", sources.audio(), *pan, X264, PCM, path)


def _in_parts(coders: str, cuts: Cuts) -> Make:
    """An editor's file: parts are cut out by the edit list alone."""

    def make(path: Path, sources: Sources) -> None:
        encoded(coders)(path, sources)
        path.write_bytes(with_edits(path.read_bytes(), cuts))

    return make


def _transparent(coders: str, sound: str) -> Make:
    """A picture whose right corners are transparent."""
    where = "gte(X\\,W-W/5)*(lt(Y\\,H/4)+gte(Y\\,H-H/4))"
    planes = "lum=lum(X\\,Y):cb=cb(X\\,Y):cr=cr(X\\,Y)"
    filters = f"format=yuva420p,geq={planes}:a=255*(1-{where})"
    return encoded(f"{coders} -auto-alt-ref 0 {sound}", filters=filters)


def _radio_first(path: Path, sources: Sources) -> None:
    """A capture of two programmes, the first without a picture."""
    radio = "-f lavfi -t 6.5 -i sine=f=200:r=48000"
    maps = "-map 0:a -map 1:v -map 2:a -program title=radio:st=0 -program title=tv:st=1:st=2"
    inputs = ("-i", sources.video(24), "-i", sources.audio())
    ffmpeg(radio, *inputs, X264, "-c:a mp2 -b:a 256k", maps, path)


def _two_sides(path: Path, sources: Sources) -> None:
    """A camera that stores each side of its sound as a track."""
    split = Path("[1:a]channelsplit=channel_layout=stereo[l][r]")
    inputs = ("-i", sources.video(24), "-i", sources.audio(), "-filter_complex", split)
    ffmpeg(*inputs, "-map 0:v -map [l] -map [r]", X264, PCM, path)
