"""Fields that are pictures of their own, as broadcasters code them: in H.264 (PAFF) and in HEVC.

No encoder at hand writes the former, so its macroblocks are samples as they are (I_PCM of ITU-T
H.264).
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.ingest.kinds import AAC, Kind, Make, Sources, by_matrix, encoded, ffmpeg, stated
from benchmarks.ingest.truth import HEIGHT, SECONDS, WIDTH, picture

RATE = 25
GROUP = 25  # frames from one IDR picture to the next


class Bits:
    """Bits of a NAL unit that are written one field after the other."""

    def __init__(self) -> None:
        self.text = ""

    def fixed(self, value: int, count: int) -> Bits:
        """Append an unsigned number of ``count`` bits."""
        self.text += f"{value:0{count}b}"
        return self

    def golomb(self, *values: int) -> Bits:
        """Append unsigned numbers in Exp-Golomb code."""
        for value in values:
            code = f"{value + 1:b}"
            self.text += "0" * (len(code) - 1) + code
        return self

    def bytes(self, end: str = "1") -> bytes:
        """Return whole bytes, filled up behind ``end``."""
        text = self.text + end
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def escaped(content: bytes) -> bytes:
    """Return the content of a NAL unit so that no mark of another one stands in it."""
    return re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", content)


def _unit(head: int, content: bytes) -> bytes:
    return b"\0\0\0\1" + bytes([head]) + escaped(content)


def parameters() -> bytes:
    """Return the sets of parameters of sequence and picture."""
    size = (WIDTH // 16 - 1, HEIGHT // 32 - 1)
    sequence = Bits().fixed(77, 8).fixed(0, 8).fixed(31, 8).golomb(0, 4, 0, 4, 1).fixed(0, 1)
    # Frames and fields; the pairs of macroblocks are not adaptive; no crop; the clock.
    sequence.golomb(*size).fixed(0b001, 3).fixed(0b0, 1).fixed(1, 1)
    sequence.fixed(0b00001, 5).fixed(1, 32).fixed(2 * RATE, 32).fixed(1, 1).fixed(0, 4)
    shown = Bits().golomb(0, 0).fixed(0, 2).golomb(0, 0, 0).fixed(0, 3).golomb(0, 0, 0).fixed(4, 3)
    return _unit(0x67, sequence.bytes()) + _unit(0x68, shown.bytes())


def coded(number: int, planes: tuple[NDArray[np.uint8], ...], bottom: bool, second: bool) -> bytes:
    """Code a field.

    Args:
        number: of its frame.
        planes: luma and both chroma planes of the field.
        bottom: whether it is the field of the lower lines.
        second: whether it is the second one of its frame.
    """
    place = number % GROUP
    idr = place == 0 and not second
    head = Bits().golomb(0, 7, 0).fixed(place, 8).fixed(0b10 | bottom, 2)
    if idr:
        head.golomb(number // GROUP % 2)
    head.fixed((2 * place + second) % 256, 8).fixed(0, 2 if idr else 1).golomb(0, 1)
    luma, *chroma = planes
    rows, columns = luma.shape[0] // 16, luma.shape[1] // 16
    sides = [16] + [8] * len(chroma)
    parts = [
        plane.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows * columns, -1)
        for plane, side in zip(planes, sides, strict=True)
    ]
    blocks = np.concatenate(parts, 1)
    # Each block's kind is 25 and stands in bytes of its own but for the first, behind the head.
    first = head.golomb(25).bytes(end="")
    kind = Bits().golomb(25).bytes(end="")
    content = first + kind.join(block.tobytes() for block in blocks) + b"\x80"
    return _unit(0x65 if idr else 0x61, content)


def _frames(bottom_first: bool) -> list[tuple[bytes, bytes]]:
    frames = []
    count = round(SECONDS * RATE)
    for number in range(count):
        units = []
        for second in (False, True):
            bottom = bottom_first != second
            image = av.VideoFrame.from_ndarray(picture(2 * number + second), "rgb24")
            whole = image.reformat(format="yuv420p").to_ndarray()
            planes = whole[:HEIGHT], *whole[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
            lines = tuple(np.ascontiguousarray(plane[bottom::2]) for plane in planes)
            units.append(coded(number, lines, bottom, second))
        head = parameters() if number % GROUP == 0 else b""
        frames.append((head + units[0], units[1]))
    return frames


def _paff(bottom_first: bool, apart: bool = False) -> Make:
    """Write fields, two to a packet, or each in one of its own."""

    def make(path: Path, sources: Sources) -> None:
        raw, sound = path.with_suffix(".264"), path.with_suffix(".wav.mkv")
        frames = _frames(bottom_first)
        raw.write_bytes(b"".join(first + second for first, second in frames[:50]))
        ffmpeg("-i", sources.audio(), "-c:a mp2 -b:a 256k", sound)
        clock = Fraction(1, 90000)
        with (
            av.open(str(raw)) as old,
            av.open(str(sound)) as heard,
            av.open(str(path), "w") as new,
        ):
            video = new.add_stream_from_template(old.streams.video[0])
            audio = new.add_stream_from_template(heard.streams.audio[0])
            video.time_base = clock
            for number, units in enumerate(frames):
                parts = units if apart else (b"".join(units),)
                for half, part in enumerate(parts):
                    packet = av.Packet(part)
                    packet.time_base, packet.stream = clock, video
                    packet.pts = packet.dts = round((number + half / 2) / RATE / clock)
                    packet.is_keyframe = number % GROUP == 0 and not half
                    new.mux(packet)
            for packet in heard.demux():
                if packet.size:
                    packet.stream = audio
                    new.mux(packet)
        raw.unlink()
        sound.unlink()

    return make


def _hevc(first: str, options: str) -> Make:
    """Code a camera's 50 fields a second, each as a picture of half the height."""
    filters = f"tinterlace=interleave_{first},separatefields,{by_matrix('bt601')}"
    x265 = f"-preset ultrafast -crf 4 -x265-params log-level=none:interlace={first[0]}ff"
    return encoded(f"-c:v libx265 {x265} {options}", 2 * RATE, filters)


def _raw(pixels: str, sound: str) -> Make:
    """Keep a camera's fields, two to a frame, as a capture card does; colours are stated."""
    filters = "tinterlace=interleave_top,scale=out_color_matrix=bt709:out_range=tv:interl=1"
    filters += f",format={pixels},setfield=tff,{stated('bt709', 'bt709', 'bt709')}"

    def make(path: Path, sources: Sources) -> None:
        coder = f"-c:v rawvideo -pix_fmt {pixels} {sound}"
        ffmpeg(
            "-i", sources.video(2 * RATE), "-i", sources.audio(), "-vf", Path(filters), coder, path
        )

    return make


def fields() -> list[Kind]:
    """List them, as ``kinds`` does."""
    made = {
        "paff_top.ts": _paff(False),
        "paff_bottom.ts": _paff(True),
        "paff_apart.ts": _paff(False, apart=True),
        "paff_top.mkv": _paff(False),
        "paff_top.mp4": _paff(False),
    }
    in_hevc = {
        "fields_hevc.ts": _hevc("top", "-bf 2 -c:a mp2 -b:a 256k"),
        "fields_hevc.mp4": _hevc("top", AAC),
        "fields_bottom_hevc.mkv": _hevc("bottom", f"-bf 2 {AAC}"),
    }
    raw = {
        "fields_uyvy.mov": _raw("uyvy422", "-c:a pcm_s16le"),
        "fields_nv12.mkv": _raw("nv12", "-c:a flac"),
    }
    return [
        *(Kind(name, "PyAV", make, fps=RATE, every=2) for name, make in made.items()),
        *(Kind(name, "ffmpeg", make, fps=RATE, every=2) for name, make in (in_hevc | raw).items()),
    ]
