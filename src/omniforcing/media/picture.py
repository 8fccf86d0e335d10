"""The picture alone of a fragmented MP4 that ``media.mux`` writes, for players that want no sound.

A browser refuses a stream with a track that its player did not name to it. Boxes of the sound's
track are left out; the picture's samples stay as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from omniforcing.media.boxes import VIDEO, box

# Where boxes hold what is read of them, from their own start.
_TRACK_NUMBER = 12  # of a ``tfhd`` and a ``trex``: after length, name, version and flags
_TKHD_NUMBER = 28  # in a ``trak``, whose first box is ``tkhd``: after that one's two times too
_OFFSET, _SAMPLES = 16, 24  # of a ``trun`` as ``boxes.fragment`` writes it


def picture_alone(piece: bytes) -> bytes:
    """Leave the sound out of whole boxes of a stream; empty where nothing is left."""
    kept, pictures = b"", 0
    for kind, whole in _boxes(piece):
        if kind == b"moov":
            kept += box(kind, *_tracks(whole[8:]))
        elif kind == b"moof":
            head, pictures = _fragment(whole[8:])
            kept += head
        elif kind != b"mdat":
            kept += whole
        elif pictures:  # which ``boxes.fragment`` puts before the sound
            kept += box(kind, whole[8 : 8 + pictures])
    return kept


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split data into its boxes: the name of each, and the whole box."""
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at : at + length]
        at += length


def _tracks(moov: bytes) -> Iterator[bytes]:
    """Boxes of a ``moov`` without the sound's ``trak`` and ``trex``."""
    for kind, whole in _boxes(moov):
        if kind == b"mvex":
            inner = (each for _, each in _boxes(whole[8:]))
            yield box(kind, *(each for each in inner if _number(each, _TRACK_NUMBER) == VIDEO))
        elif kind != b"trak" or _number(whole, _TKHD_NUMBER) == VIDEO:
            yield whole


def _fragment(moof: bytes) -> tuple[bytes, int]:
    """Return a ``moof`` of the picture's track alone and the length of its data, or nothing."""
    number, *tracks = (whole for _, whole in _boxes(moof))
    for track in tracks:
        tfhd, tfdt, trun = (whole for _, whole in _boxes(track[8:]))
        if _number(tfhd, _TRACK_NUMBER) == VIDEO:
            head = 8 + len(number) + len(track)  # the length of the new ``moof``
            placed = trun[:_OFFSET] + struct.pack(">i", head + 8) + trun[_OFFSET + 4 :]
            sizes = (size for size, _ in struct.iter_unpack(">2I", trun[_SAMPLES:]))
            return box(b"moof", number, box(b"traf", tfhd, tfdt, placed)), sum(sizes)
    return b"", 0


def _number(data: bytes, at: int) -> int:
    number: int = struct.unpack_from(">I", data, at)[0]
    return number
