"""What a container states about a stored picture: its crop, its colours and its times.

FFmpeg's decoders apply what a bitstream carries itself. PyAV leaves the crop of a container aside
(18.1), and decoders whose bitstream states no colours forget those of the container.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av

from omniforcing.media.reading.edits import open_boxes

# Elements of Matroska (RFC 9559) on the way to a track's crop.
_SEGMENT, _TRACKS, _ENTRY, _VIDEO, _CODEC = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x86
_SIDES = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}
_COLOUR, _MATRIX, _RANGE, _TRANSFER, _PRIMARIES = 0x55B0, 0x55B1, 0x55B9, 0x55BA, 0x55BB
# Containers that store the times of some packets only. FFmpeg guesses the others, wrongly where
# frames are shown in another order than they are stored in, or for longer than others.
SOME_TIMES = {"mpeg"}
_ENTRY_HEAD = 78  # bytes of a visual sample entry before its boxes (ISO/IEC 14496-12, 12.1.3)


class Crop(NamedTuple):
    """Pixels to cut from each side of a picture as it is stored."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


class Tags(NamedTuple):
    """Colours by the numbers of ITU-T H.273, which are FFmpeg's too; 2 where none are stated."""

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    full: bool | None = None  # whether black is 0 and not 16


class Stated(NamedTuple):
    """What a container states about a track's picture.

    Attributes:
        crop: what to cut from it.
        tags: its colours.
        stamped: whether each packet's time is stored, where a container stores some only.
        unordered: whether it stores decoding times only, as AVI and what was copied from it.
    """

    crop: Crop = Crop()
    tags: Tags = Tags()
    stamped: bytes | None = None
    unordered: bool = False


NOTHING = Stated()


def read_stated(source: Path | bytes, container: Any, video: Any) -> Stated:
    """Read what a file's container states about one of its tracks.

    Args:
        source: path or content of the file.
        container: the same, opened by PyAV.
        video: the track.
    """
    if container.format.name.startswith("mov"):
        return _mp4(source, video.id, video.height, video.width)
    if container.format.name.startswith("matroska"):
        return _matroska(source, video.index)
    if container.format.name == "avi":
        return Stated(unordered=True)
    if container.format.name in SOME_TIMES:
        return Stated(stamped=_stamped(source, video.index))
    return NOTHING


def _stamped(source: Path | bytes, index: int) -> bytes:
    """Return for each packet of a track whether its time is stored, or else guessed by FFmpeg."""
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    with av.open(file, metadata_errors="ignore", options={"fflags": "nofillin"}) as container:
        packets = container.demux(container.streams[index])
        return bytes(packet.pts is not None for packet in packets if packet.size)


def _matroska(source: Path | bytes, index: int) -> Stated:
    """Read the track of a number, from 0, of a Matroska file."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        size = file.seek(0, 2)
        for segment, place, length in _elements(file, 0, size):
            if segment != _SEGMENT:
                continue
            for kind, begin, held in _elements(file, place, min(size, place + length)):
                if kind == _TRACKS:
                    entries = [e for e in _elements(file, begin, begin + held) if e[0] == _ENTRY]
                    if index < len(entries):
                        return _entry(file, *entries[index][1:])
    return NOTHING


def _entry(file: BinaryIO, place: int, length: int) -> Stated:
    found: dict[int, int] = {}
    unordered = False
    for kind, begin, held in _elements(file, place, place + length):
        if kind == _CODEC:
            file.seek(begin)
            unordered = file.read(held).rstrip(b"\0") == b"V_MS/VFW/FOURCC"
        if kind != _VIDEO:
            continue
        for name, at, count in _elements(file, begin, begin + held):
            if name == _COLOUR:
                found |= {n: _integer(file, *rest) for n, *rest in _elements(file, at, at + count)}
            elif name in _SIDES:
                found[name] = _integer(file, at, count)
    full = {1: False, 2: True}.get(found.get(_RANGE, 0))
    primaries, transfer, matrix = (found.get(n, 2) for n in (_PRIMARIES, _TRANSFER, _MATRIX))
    tags = Tags(primaries, transfer, matrix, full)
    crop = Crop(**{_SIDES[name]: found[name] for name in _SIDES if name in found})
    return Stated(crop, tags, unordered=unordered)


def _integer(file: BinaryIO, place: int, length: int) -> int:
    file.seek(place)
    return int.from_bytes(file.read(min(length, 8)), "big")


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


def _mp4(source: Path | bytes, track: int, height: int, width: int) -> Stated:
    """Read a track, by its number in the file, whose stored picture has a height and a width."""
    number = 0
    for kind, body in open_boxes(source, {b"tkhd", b"stsd"}):
        try:
            if kind == b"tkhd":
                (number,) = struct.unpack_from(">I", body, 20 if body[0] else 12)
            elif number == track:
                return _sample_entry(body[8 + 8 + _ENTRY_HEAD :], height, width)
        except (struct.error, ZeroDivisionError):
            return NOTHING
    return NOTHING


def _sample_entry(boxes: bytes, height: int, width: int) -> Stated:
    stated = NOTHING
    place = 0
    while place + 8 <= len(boxes):
        size, kind = struct.unpack_from(">I4s", boxes, place)
        if size < 8:
            break
        if kind == b"clap":
            stated = stated._replace(crop=_aperture(boxes[place + 8 :], height, width))
        elif kind == b"colr" and boxes[place + 8 : place + 12] in (b"nclc", b"nclx"):
            primaries, transfer, matrix = struct.unpack_from(">HHH", boxes, place + 12)
            nclx = boxes[place + 11 : place + 12] == b"x"
            full = bool(boxes[place + 18] & 0x80) if nclx and size > 18 else None
            stated = stated._replace(tags=Tags(primaries, transfer, matrix, full))
        place += size
    return stated


def _aperture(box: bytes, height: int, width: int) -> Crop:
    """Read the content of a clean aperture as a crop (ISO/IEC 14496-12, 12.1.4)."""
    parts = struct.unpack_from(">IIIIiIiI", box)
    wide, high = parts[0] / parts[1], parts[2] / parts[3]
    right, down = parts[4] / parts[5], parts[6] / parts[7]
    left = round((width - wide) / 2 + right)
    top = round((height - high) / 2 + down)
    if left < 0 or top < 0 or not 0 < wide <= width - left or not 0 < high <= height - top:
        return Crop()
    return Crop(top, height - top - round(high), left, width - left - round(wide))
