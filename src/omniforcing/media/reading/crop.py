"""Crops that a container asks for: Matroska's PixelCrop and the clean aperture of MP4.

FFmpeg's decoders apply the crop that a bitstream carries itself; PyAV leaves that of a container
aside (18.1).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from omniforcing.media.reading.edits import open_boxes

# Elements of Matroska (RFC 9559) on the way to a track's crop.
_SEGMENT, _TRACKS, _ENTRY, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
_SIDES = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}
_ENTRY_HEAD = 78  # bytes of a visual sample entry before its boxes (ISO/IEC 14496-12, 12.1.3)


class Crop(NamedTuple):
    """Pixels to cut from each side of a picture as it is stored."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


NO_CROP = Crop()


def matroska_crop(source: Path | bytes, index: int) -> Crop:
    """Read the crop of a Matroska file's track.

    Args:
        source: path or content of the file.
        index: number of the track in the file, from 0.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        size = file.seek(0, 2)
        for segment, place, length in _elements(file, 0, size):
            if segment != _SEGMENT:
                continue
            for kind, begin, held in _elements(file, place, min(size, place + length)):
                if kind == _TRACKS:
                    entries = [e for e in _elements(file, begin, begin + held) if e[0] == _ENTRY]
                    if index < len(entries):
                        return _entry_crop(file, *entries[index][1:])
    return NO_CROP


def _entry_crop(file: BinaryIO, place: int, length: int) -> Crop:
    sides: dict[str, int] = {}
    for kind, begin, held in _elements(file, place, place + length):
        if kind != _VIDEO:
            continue
        for name, at, count in _elements(file, begin, begin + held):
            if name in _SIDES and count <= 8:
                file.seek(at)
                sides[_SIDES[name]] = int.from_bytes(file.read(count), "big")
    return Crop(**sides)


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield identity, place and length of the content of each element between two places."""
    while start < end:
        file.seek(start)
        head = file.read(12)
        first = 9 - head[0].bit_length() if head and head[0] else 9
        if first > 4 or len(head) <= first or not head[first]:
            return
        count = 9 - head[first].bit_length()
        if len(head) < first + count:
            return
        length = int.from_bytes(head[first : first + count], "big") & ((1 << 7 * count) - 1)
        if length == (1 << 7 * count) - 1:
            length = end - start  # unknown, as in a live stream: up to the end
        yield int.from_bytes(head[:first], "big"), start + first + count, length
        start += first + count + length


def clean_aperture(source: Path | bytes, track: int, height: int, width: int) -> Crop:
    """Read the clean aperture of an MP4 file's track as a crop.

    Args:
        source: path or content of the file.
        track: number of the track.
        height: height of the stored picture in pixels.
        width: its width.
    """
    number = 0
    for kind, body in open_boxes(source, {b"tkhd", b"stsd"}):
        try:
            if kind == b"tkhd":
                (number,) = struct.unpack_from(">I", body, 20 if body[0] else 12)
            elif number == track:
                return _aperture(body[8 + 8 + _ENTRY_HEAD :], height, width)
        except (struct.error, ZeroDivisionError):
            return NO_CROP
    return NO_CROP


def _aperture(boxes: bytes, height: int, width: int) -> Crop:
    place = 0
    while place + 8 <= len(boxes):
        size, kind = struct.unpack_from(">I4s", boxes, place)
        if kind == b"clap":
            break
        if size < 8:
            return NO_CROP
        place += size
    else:
        return NO_CROP
    parts = struct.unpack_from(">IIIIiIiI", boxes, place + 8)
    wide, high = parts[0] / parts[1], parts[2] / parts[3]
    right, down = parts[4] / parts[5], parts[6] / parts[7]
    left = round((width - wide) / 2 + right)
    top = round((height - high) / 2 + down)
    if left < 0 or top < 0 or not 0 < wide <= width - left or not 0 < high <= height - top:
        return NO_CROP
    return Crop(top, height - top - round(high), left, width - left - round(wide))
