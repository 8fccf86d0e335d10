"""Fragmented MP4 (ISO/IEC 14496-12, -14, -15), the few boxes that a stream of H.264 and AAC needs.

A header goes first; then every fragment holds what one block added to either track, so nothing waits for a later packet.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from omniforcing.core.layout import FPS

VIDEO, AUDIO = 1, 2  # track numbers
# Those of AAC that an MP4's 16 bits hold and that give a mel frame of 10 ms whole samples.
SAMPLE_RATES = (8_000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000)
_KEYFRAME, _OTHER_FRAME = (
    0x02000000,
    0x01010000,
)  # sample flags: depends on nothing; depends on others, is no sync sample
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


@dataclass(frozen=True)
class TrackFragment:
    """A track's part of a fragment: one unit of the track's clock per video frame, ``AAC_FRAME`` per audio frame.

    Attributes:
        start: decoding time of the first, on the track's clock.
        duration: of each.
        data: the encoded frames; those of the video begin with a keyframe.
    """

    start: int
    duration: int
    data: Sequence[bytes]


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)


def header(
    height: int,
    width: int,
    parameter_sets: tuple[bytes, bytes],
    aac: bytes,
    sample_rate: int,
    priming: int,
) -> bytes:
    """``ftyp`` and ``moov``.

    Args:
        height: of the picture.
        width: of the picture.
        parameter_sets: SPS and PPS of the H.264 stream.
        aac: the sound's AudioSpecificConfig.
        sample_rate: of the sound, the clock of its track.
        priming: audio samples that the AAC encoder put before the sound, which the edit list cuts off.
    """
    clock = struct.pack(">4I I H 10x", 0, 0, 1000, 0, 0x10000, 0x100)
    mvhd = _full(b"mvhd", 0, 0, clock, _MATRIX, bytes(24), struct.pack(">I", 3))
    size = struct.pack(">2I", width << 16, height << 16)
    video = _track(
        VIDEO,
        FPS,
        b"vide",
        _full(b"vmhd", 0, 1, bytes(8)),
        _avc1(height, width, *parameter_sets),
        size,
    )
    edit = _box(b"edts", _full(b"elst", 0, 0, struct.pack(">I I i I", 1, 0, priming, 0x10000)))
    audio = _track(
        AUDIO,
        sample_rate,
        b"soun",
        _full(b"smhd", 0, 0, bytes(4)),
        _mp4a(aac, sample_rate),
        bytes(8),
        edit,
    )
    defaults = (
        _full(b"trex", 0, 0, struct.pack(">5I", track, 1, 0, 0, 0)) for track in (VIDEO, AUDIO)
    )
    kind = _box(b"ftyp", b"iso5", struct.pack(">I", 512), b"iso5iso6mp41")
    return kind + _box(b"moov", mvhd, video, audio, _box(b"mvex", *defaults))


def _track(
    number: int,
    clock: int,
    handler: bytes,
    media: bytes,
    entry: bytes,
    size: bytes,
    edit: bytes = b"",
) -> bytes:
    volume = 0x0100 if handler == b"soun" else 0
    tkhd = _full(
        b"tkhd", 0, 3, struct.pack(">5I 8x 3H 2x", 0, 0, number, 0, 0, 0, 0, volume), _MATRIX, size
    )
    mdhd = _full(
        b"mdhd", 0, 0, struct.pack(">4I 2H", 0, 0, clock, 0, 0x55C4, 0)
    )  # language: undetermined
    hdlr = _full(b"hdlr", 0, 0, bytes(4), handler, bytes(12), b"omniforcing\0")
    here = _box(b"dinf", _full(b"dref", 0, 0, struct.pack(">I", 1), _full(b"url ", 0, 1)))
    empty = (
        _full(kind, 0, 0, bytes(count))
        for kind, count in ((b"stts", 4), (b"stsc", 4), (b"stsz", 8), (b"stco", 4))
    )
    table = _box(b"stbl", _full(b"stsd", 0, 0, struct.pack(">I", 1), entry), *empty)
    return _box(b"trak", tkhd, edit, _box(b"mdia", mdhd, hdlr, _box(b"minf", media, here, table)))


def _avc1(height: int, width: int, sps: bytes, pps: bytes) -> bytes:
    sets = (
        struct.pack(">B3sBBH", 1, sps[1:4], 0xFF, 0xE1, len(sps))
        + sps
        + struct.pack(">BH", 1, len(pps))
        + pps
    )
    fine = bytes((0xFD, 0xF8, 0xF8, 0)) if sps[1] >= 100 else b""  # High profiles: 4:2:0, 8 bits
    shape = struct.pack(
        ">6x H 16x 2H 2I 4x H 32x Hh", 1, width, height, 0x480000, 0x480000, 1, 24, -1
    )
    return _box(b"avc1", shape, _box(b"avcC", sets, fine))


def _mp4a(config: bytes, sample_rate: int) -> bytes:
    def descriptor(tag: int, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return bytes((tag, len(body))) + body

    decoder = descriptor(
        4, struct.pack(">BB3xII", 0x40, 0x15, 0, 0), descriptor(5, config)
    )  # MPEG-4 audio, an audio stream
    stream = descriptor(3, struct.pack(">HB", AUDIO, 0), decoder, descriptor(6, b"\x02"))
    shape = struct.pack(">6x H 8x 2H 4x I", 1, 2, 16, sample_rate << 16)
    return _box(b"mp4a", shape, _full(b"esds", 0, 0, stream))


def fragment(number: int, video: TrackFragment, audio: TrackFragment) -> bytes:
    """``moof`` and ``mdat`` of what a block added; either track may have added nothing."""
    tracks = [
        (track, samples) for track, samples in ((VIDEO, video), (AUDIO, audio)) if samples.data
    ]

    def moof(offsets: Sequence[int]) -> bytes:
        parts = (
            _traf(track, samples, offset)
            for (track, samples), offset in zip(tracks, offsets, strict=True)
        )
        return _box(b"moof", _full(b"mfhd", 0, 0, struct.pack(">I", number)), *parts)

    lengths = [sum(map(len, samples.data)) for _, samples in tracks]
    first = len(moof([0] * len(tracks))) + 8  # where mdat's body begins, counted from moof
    data = _box(b"mdat", *(piece for _, samples in tracks for piece in samples.data))
    return moof([first + sum(lengths[:n]) for n in range(len(tracks))]) + data


def _traf(track: int, samples: TrackFragment, offset: int) -> bytes:
    usual = _OTHER_FRAME if track == VIDEO else _KEYFRAME
    # tfhd: offsets count from moof; default duration and flags. trun: data offset, flags of the first sample, sizes.
    tfhd = _full(b"tfhd", 0, 0x020028, struct.pack(">3I", track, samples.duration, usual))
    tfdt = _full(b"tfdt", 1, 0, struct.pack(">Q", samples.start))
    sizes = struct.pack(f">{len(samples.data)}I", *map(len, samples.data))
    return _box(
        b"traf",
        tfhd,
        tfdt,
        _full(b"trun", 0, 0x205, struct.pack(">IiI", len(samples.data), offset, _KEYFRAME), sizes),
    )
