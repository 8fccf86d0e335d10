"""Kinds of an unusual shape: turned, stretched or slanted by the container."""

from __future__ import annotations

import struct
from pathlib import Path

import av

from benchmarks.ingest.kinds import AAC, X264, Kind, Make, Sources, encoded, ffmpeg, run

Matrix = tuple[float, float, float, float]
HALF_TURN = 0.5**0.5
TURNED_45: Matrix = (HALF_TURN, HALF_TURN, -HALF_TURN, HALF_TURN)
SLANTED: Matrix = (1, 0, 0.3, 1)
STRETCHED: Matrix = (2, 0, 0, 1)
_PLAIN = bytes.fromhex("00010000" + "00" * 12 + "00010000")
SQUEEZED = "transpose=1,scale=120:256,setsar=4/3"  # lies on its side, its pixels wide


def shapes() -> list[Kind]:
    """List them, as ``kinds`` does."""
    askew = "askew picture"
    narrow = "scale=128:160,setsar=0"  # no aspect is written, so that the matrix gives it
    return [
        Kind("turned_wide_pixels.mp4", "ffmpeg", _turned_wide),
        Kind("turned_wide_pixels.mkv", "mkvpropedit", _turned_wide),
        Kind("turned_wide_pixels_copied.mkv", "PyAV", _copied),
        Kind("turned_45.mp4", "ffmpeg", _with_matrix(TURNED_45), reject=askew),
        Kind("turned_45.mkv", "mkvpropedit", _posed(45), reject=askew),
        Kind("slanted.mp4", "ffmpeg", _with_matrix(SLANTED), reject=askew),
        Kind("stretched_by_matrix.mp4", "ffmpeg", _with_matrix(STRETCHED, narrow)),
    ]


def with_matrix(content: bytes, matrix: Matrix) -> bytes:
    """Set the matrix of the first track of an mp4: a pixel (x, y) goes to (ax + cy, bx + dy)."""
    # The first one of a file is the movie's.
    place = content.index(_PLAIN, content.index(_PLAIN) + 1)
    a, b, c, d = (struct.pack(">i", round(value * 65536)) for value in matrix)
    return content[:place] + a + b + bytes(4) + c + d + content[place + 20 :]


def copy(source: Path, target: Path) -> None:
    """Copy the tracks of a file into another container by PyAV."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


def _with_matrix(matrix: Matrix, filters: str = "") -> Make:
    def make(path: Path, sources: Sources) -> None:
        encoded(f"{X264} {AAC}", filters=filters)(path, sources)
        path.write_bytes(with_matrix(path.read_bytes(), matrix))

    return make


def _posed(angle: int, filters: str = "") -> Make:
    def make(path: Path, sources: Sources) -> None:
        encoded(f"{X264} {AAC}", filters=filters)(path, sources)
        pose = ("--set", "projection-type=0", "--set", f"projection-pose-roll={angle}")
        run("mkvpropedit", path, "--edit", "track:v1", *pose)

    return make


def _turned_wide(path: Path, sources: Sources) -> None:
    """A phone held upright that records wide pixels."""
    if path.suffix == ".mkv":
        _posed(90, SQUEEZED)(path, sources)
        return
    lying = path.with_name(f"lying-{path.name}")
    encoded(f"{X264} {AAC}", filters=SQUEEZED)(lying, sources)
    ffmpeg("-display_rotation 90 -i", lying, "-c copy", path)
    lying.unlink()


def _copied(path: Path, sources: Sources) -> None:
    whole = path.with_suffix(".mp4")
    _turned_wide(whole, sources)
    copy(whole, path)
    whole.unlink()
