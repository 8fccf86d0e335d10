"""Edit lists for mp4 files that have none of their own (ISO/IEC 14496-12, 8.6.6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

# Begin and end of what is played, in seconds of the file; None as begin: nothing, for so long.
Cuts = Sequence[tuple[float | None, float]]


def with_edits(content: bytes, cuts: Cuts) -> bytes:
    """Give every track of an mp4, whose index stands at its end, an edit list."""
    place, size = next((at, size) for kind, at, size in boxes(content) if kind == b"moov")
    moov = content[place + 8 : place + size]
    clock, body = 1, b""
    for kind, at, length in boxes(moov):
        box = moov[at : at + length]
        if kind == b"mvhd":
            (clock,) = struct.unpack_from(">I", box, 8 + 12)
        body += _edited(box, cuts, clock) if kind == b"trak" else box
    return content[:place] + _box(b"moov", body) + content[place + size :]


def shown(cuts: Cuts, count: int, fps: float = 24) -> tuple[float, ...]:
    """Times at which pictures are shown; those of pictures that are cut equal the next one's."""
    times: list[float | None] = [None] * count
    at = 0.0
    for begin, end in cuts:
        if begin is None:
            at += end
            continue
        for number in range(count):
            first = number / fps
            if first + 1 / fps > begin + 1e-6 and first < end - 1e-6:
                times[number] = max(at, at + first - begin)
        at += end - begin
    following, found = at, []
    for time in reversed(times):
        following = following if time is None else time
        found.append(following)
    return tuple(reversed(found))


def boxes(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, place and size of each box."""
    place = 0
    while place + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        yield kind, place, size
        place += size


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _edited(track: bytes, cuts: Cuts, movie_clock: int) -> bytes:
    inner = track[8:]
    parts = {kind: inner[at : at + size] for kind, at, size in boxes(inner)}
    media = parts[b"mdia"][8:]
    header = next(media[at : at + size] for kind, at, size in boxes(media) if kind == b"mdhd")
    (clock,) = struct.unpack_from(">I", header, 8 + 12)
    # Where the track begins by its own list: behind the samples that warm its coder up.
    old = parts.get(b"edts")
    skipped = struct.unpack_from(">i", old, 8 + 8 + 8 + 4)[0] if old else 0
    entries = b""
    for begin, end in cuts:
        start = -1 if begin is None else skipped + round(begin * clock)
        length = round((end - (begin or 0.0)) * movie_clock)
        entries += struct.pack(">IiHH", length, start, 1, 0)
    edits = _box(b"edts", _box(b"elst", struct.pack(">II", 0, len(cuts)) + entries))
    body = b"".join(
        box + (edits if kind == b"tkhd" else b"") for kind, box in parts.items() if kind != b"edts"
    )
    return _box(b"trak", body)
