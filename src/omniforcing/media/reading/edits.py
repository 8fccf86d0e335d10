"""Edit lists of MP4 and QuickTime files, which say what of a track is played (ISO/IEC 14496-12)."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

# Boxes on the way to a track's edit list, its number, its clock and the movie's clock.
_INNER = {b"moov", b"trak", b"mdia", b"edts", b"minf", b"stbl"}
_WANTED = {b"mvhd", b"tkhd", b"mdhd", b"elst"}
MOST_BYTES = 1 << 20  # of a box that is read
SLIVER = 0.001  # seconds: the movie's clock is often no finer, so less of a frame is none


@dataclass(frozen=True)
class Edit:
    """First edit of a track.

    Attributes:
        start: seconds of the track before its first moment that is played.
        empty: seconds of the movie before it.
    """

    start: float
    empty: float


class Part(NamedTuple):
    """Part of a track, from ``start`` to ``end`` in seconds, that is played at ``at``."""

    start: float
    end: float
    at: float


class Edits(NamedTuple):
    """What an edit list of several parts plays of the picture and of the sound."""

    video: tuple[Part, ...]
    audio: tuple[Part, ...]


def first_edit(source: Path | bytes, track: int) -> Edit | None:
    """Read the first edit of a track that plays something.

    Args:
        source: path or content of an MP4 or QuickTime file.
        track: number of the track.

    Returns:
        The edit, or None if the track has none, or the file's boxes cannot be followed.
    """
    edits, clock, movie_clock = _read(source, track)
    played = next((place for place, edit in enumerate(edits) if edit[1] >= 0), None)
    if played is None or not clock or not movie_clock:
        return None
    empty = sum(edit[0] for edit in edits[:played])
    return Edit(edits[played][1] / clock, empty / movie_clock)


def edit_shift(source: Path | bytes, container: Any, video: Any) -> float:
    """Return the seconds by which FFmpeg's times of a trimmed mp4's picture are early.

    An edit list may begin within a frame, as where a phone trims a clip without encoding it. FFmpeg
    hides that frame and shows the next one, which is due only when the hidden one ends, at once.
    The sound is cut to the sample, so the picture would run ahead of it.
    """
    if not container.format.name.startswith("mov"):
        return 0.0
    edit = first_edit(source, video.id)
    if edit is None:
        return 0.0
    edited = _first_packet(source, video.index)
    # The same packet, by its place in the file, with the time that it has without the edit list.
    whole = edited and _first_packet(source, video.index, edited[0], ignore_editlist="1")
    if edited is None or whole is None:
        return 0.0
    return float((whole[1] - edited[1]) * video.time_base) - edit.start + edit.empty


def _first_packet(
    source: Path | bytes, index: int, place: int | None = None, **options: str
) -> tuple[int, int] | None:
    """Return place and time of a track's first packet with a time, or of the one at a place."""
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    with av.open(file, options=options) as container:
        for packet in container.demux(container.streams[index]):
            if packet.pts is not None and place in (None, packet.pos):
                return packet.pos, packet.pts
    return None


def played_parts(source: Path | bytes, track: int) -> tuple[Part, ...] | None:
    """Read all that an edit list plays of a track, in the order of the movie.

    Args:
        source: path or content of an MP4 or QuickTime file.
        track: number of the track.

    Returns:
        The parts, the whole track if there is no edit list; None if a part is played at another
        rate, or again, or out of order.
    """
    edits, clock, movie_clock = _read(source, track)
    parts: list[Part] = []
    at = 0.0
    for duration, start, rate in edits if clock and movie_clock else ():
        length = duration / movie_clock
        if start >= 0:
            begin = start / clock
            if rate != 1 or (parts and begin < parts[-1].end - SLIVER):
                return None
            # A fragmented file does not know its length: up to the end.
            parts.append(Part(begin, begin + length if duration else math.inf, at))
        at += length
    return tuple(parts) or (Part(0.0, math.inf, 0.0),)


def times_played(times: NDArray[Any], end: float, parts: tuple[Part, ...]) -> NDArray[Any]:
    """Return the times at which frames are shown that begin at ``times`` of their track."""
    ends = np.append(times[1:], end)
    found = []
    for part in parts:
        begins = np.maximum(times, part.start)
        shown = np.minimum(ends, part.end) - begins > SLIVER
        found.append(begins[shown] - part.start + part.at)
    return np.concatenate(found)


def end_played(end: float, parts: tuple[Part, ...]) -> float:
    """Return when a track that ends at ``end`` of its own clock has been played."""
    last = parts[-1]
    return last.at + max(0.0, min(end, last.end) - last.start)


def _read(source: Path | bytes, track: int) -> tuple[list[tuple[int, int, int]], int, int]:
    """Read a track's edits, its clock and the movie's in ticks per second; zeros if unreadable."""
    movie_clock = number = clock = 0
    edits: list[tuple[int, int, int]] = []
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
        except struct.error:
            return [], 0, 0
    return edits, clock, movie_clock


def _edits(body: bytes, version: int) -> list[tuple[int, int, int]]:
    """Read duration on the movie's clock, start on the track's, -1 for an empty edit, and rate."""
    (count,) = struct.unpack_from(">I", body, 4)
    entry = struct.Struct(">Qqhh" if version else ">Iihh")
    places = range(8, min(8 + count * entry.size, len(body) - entry.size + 1), entry.size)
    return [entry.unpack_from(body, place)[:3] for place in places]


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
