"""Edit lists of MP4 and QuickTime files, which say what of a track is played (ISO/IEC 14496-12)."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# Boxes on the way to a track's edit list, its number, its clock and the movie's clock.
_INNER = {b"moov", b"trak", b"mdia", b"edts", b"minf", b"stbl"}
_WANTED = {b"mvhd", b"tkhd", b"mdhd", b"elst"}
MOST_BYTES = 1 << 20  # of a box that is read


@dataclass(frozen=True)
class Edit:
    """First edit of a track.

    Attributes:
        start: seconds of the track before its first moment that is played.
        empty: seconds of the movie before it.
    """

    start: float
    empty: float


def first_edit(source: Path | bytes, track: int) -> Edit | None:
    """Read the first edit of a track that plays something.

    Args:
        source: path or content of an MP4 or QuickTime file.
        track: number of the track.

    Returns:
        The edit, or None if the track has none, or the file's boxes cannot be followed.
    """
    movie_clock = number = clock = 0
    edits: list[tuple[int, int]] = []
    for kind, body in open_boxes(source, _WANTED):
        version = body[0] if body else 0
        try:
            if kind == b"mvhd":
                (movie_clock,) = struct.unpack_from(">I", body, 20 if version else 12)
            elif kind == b"tkhd":
                (number,) = struct.unpack_from(">I", body, 20 if version else 12)
            elif kind == b"elst" and number == track:
                edits = _edits(body, version)
            elif kind == b"mdhd" and number == track:
                (clock,) = struct.unpack_from(">I", body, 20 if version else 12)
                break
        except struct.error:
            return None
    played = next((place for place, edit in enumerate(edits) if edit[1] >= 0), None)
    if played is None or not clock or not movie_clock:
        return None
    empty = sum(duration for duration, _ in edits[:played])
    return Edit(edits[played][1] / clock, empty / movie_clock)


def _edits(body: bytes, version: int) -> list[tuple[int, int]]:
    """Read duration on the movie's clock and start on the track's, -1 for an empty edit."""
    (count,) = struct.unpack_from(">I", body, 4)
    entry = struct.Struct(">Qqhh" if version else ">Iihh")
    places = range(8, min(8 + count * entry.size, len(body) - entry.size + 1), entry.size)
    return [entry.unpack_from(body, place)[:2] for place in places]


def open_boxes(source: Path | bytes, wanted: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the wanted boxes of an MP4 or QuickTime file's tracks, in order."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        yield from _boxes(file, 0, file.seek(0, 2), wanted)


def _boxes(
    file: BinaryIO, start: int, end: int, wanted: set[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8).rjust(8, b"\0"))
            head = 16
        size = size or end - start  # 0: up to the end
        if size < head:
            return
        if kind in _INNER:
            yield from _boxes(file, start + head, min(end, start + size), wanted)
        elif kind in wanted and size < MOST_BYTES:
            yield kind, file.read(size - head)
        start += size
