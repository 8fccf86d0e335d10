"""Kinds that lack something: lost packets, and joints that only look like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.ingest.kinds import AAC, X264, Kind, Make, Sources, encoded

PIECE = 188  # bytes of a packet of a transport stream
PICTURE, SOUND = 256, 257  # numbers that ffmpeg gives to the tracks
X265 = "-c:v libx265 -preset ultrafast -crf 6 -x265-params log-level=none:keyint=24"
MP2 = "-c:a mp2 -b:a 256k"
LOST = (1,)  # what the second cut shows


def losses() -> list[Kind]:
    """List them, as ``kinds`` does."""
    mpeg2 = f"-c:v mpeg2video -g 12 -q:v 2 -bf 2 {MP2}"
    made: dict[str, tuple[Make, tuple[int, ...]]] = {
        "lost_frames.ts": (_losing(f"{X264} -g 24 -bf 2 {MP2}", whole(60, 62)), LOST),
        "lost_part.ts": (_losing(f"{X264} -g 24 -bf 2 {MP2}", part(60)), LOST),
        "lost_keyframe.ts": (_losing(f"{X264} -g 24 -bf 2 {MP2}", part(49)), LOST),
        "lost_frames_hevc.ts": (_losing(f"{X265} {AAC}", whole(60, 62)), LOST),
        "lost_part_mpeg2.ts": (_losing(mpeg2, part(66)), LOST),
        "lost_sound.ts": (_losing(f"{X264} {AAC}", part(20, SOUND)), LOST),
        "segments.ts": (_segments, ()),
        "segments_hevc.ts": (_segments, ()),
    }
    return [Kind(name, "ffmpeg", make, lost=lost) for name, (make, lost) in made.items()]


def pieces(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield track, number of the unit within it, and bytes of each packet of a stream."""
    units: dict[int, int] = {}
    for place in range(0, len(content) - PIECE + 1, PIECE):
        piece = content[place : place + PIECE]
        track = (piece[1] & 0x1F) << 8 | piece[2]
        units[track] = units.get(track, -1) + bool(piece[1] & 0x40)
        yield track, units[track], piece


Chosen = Callable[[bytes], set[int]]


def whole(first: int, end: int, track: int = PICTURE) -> Chosen:
    """Choose all packets of the units from ``first`` to before ``end`` of a track."""

    def choose(content: bytes) -> set[int]:
        listed = enumerate(pieces(content))
        return {n for n, (of, unit, _) in listed if of == track and first <= unit < end}

    return choose


def part(unit: int, track: int = PICTURE) -> Chosen:
    """Choose the last packet of a unit that has several, of this number or the next ones."""

    def choose(content: bytes) -> set[int]:
        by_unit: dict[int, list[int]] = {}
        for number, (of, found, _) in enumerate(pieces(content)):
            if of == track:
                by_unit.setdefault(found, []).append(number)
        several = [numbers for found, numbers in by_unit.items() if found >= unit and numbers[1:]]
        return {several[0][-1]}

    return choose


def losing(content: bytes, chosen: Chosen) -> bytes:
    """Return a transport stream without the packets that are chosen."""
    numbers = chosen(content)
    return b"".join(p for n, (_, _, p) in enumerate(pieces(content)) if n not in numbers)


def _losing(options: str, chosen: Chosen) -> Make:
    """A broadcast with a bad reception."""

    def make(path: Path, sources: Sources) -> None:
        encoded(options)(path, sources)
        path.write_bytes(losing(path.read_bytes(), chosen))

    return make


def _segments(path: Path, sources: Sources) -> None:
    """Segments of a web stream, each written by itself, downloaded one after the other."""
    coder = f"{X264} -g 24 -bf 2" if "hevc" not in path.name else X265
    names = path.with_name(f"{path.stem}-%d.ts")
    encoded(f"{coder} {MP2} -f segment -segment_time 1 -segment_format mpegts")(names, sources)
    parts = [path.with_name(f"{path.stem}-{number}.ts") for number in range(7)]
    path.write_bytes(b"".join(piece.read_bytes() for piece in parts))
    for piece in parts:
        piece.unlink()
