"""Boxes of a fragmented MP4 with one H.264 and one AAC track (ISO/IEC 14496-12, -14 and -15).

The file begins with a header (``ftyp``, ``moov``) that holds no sample. Every fragment (``moof``,
``mdat``) then carries the frames that one block added to either track, so a player never has to
wait for a later packet.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from omniforcing.core.layout import FPS

VIDEO, AUDIO = 1, 2  # track numbers
# Ticks per frame and per second of the video track. A clock of one tick per frame would make tools
# that remux round every shift of the track, such as one by the sound's priming, to a whole frame.
FRAME_TICKS = 512
VIDEO_CLOCK = FPS * FRAME_TICKS
# Sample rates of AAC that fit the 16 bits of an MP4 sample entry and that divide into whole samples
# per mel frame of 10 ms.
SAMPLE_RATES = (8_000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000)
# Sample flags (14496-12, 8.8.3.1): "depends on no other" and "depends on others, no sync sample".
_KEYFRAME = 0x02000000
_OTHER_FRAME = 0x01010000
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)  # no rotation


@dataclass(frozen=True)
class TrackFragment:
    """Encoded frames that one fragment adds to one track.

    Attributes:
        start: decoding time of the first frame, in units of the track's clock.
        duration: length of each frame in the same units: ``FRAME_TICKS`` for a video frame,
            ``AAC_FRAME`` for an audio frame.
        data: the encoded frames; those of the video track begin with a keyframe.
        delay: from decoding to presentation of each frame, in the same units.
    """

    start: int
    duration: int
    data: Sequence[bytes]
    delay: int = 0


def box(kind: bytes, *parts: bytes) -> bytes:
    """Build a box: its length, its kind of four bytes, its content."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """Build a box whose content begins with a version and 24 flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def header(
    height: int,
    width: int,
    parameter_sets: tuple[bytes, bytes],
    aac: bytes,
    sample_rate: int,
    priming: int,
    user_data: bytes = b"",
) -> bytes:
    """Build the boxes that begin the file, ``ftyp`` and ``moov``.

    Args:
        height: height of the frames in pixels.
        width: width of the frames in pixels.
        parameter_sets: SPS and PPS of the H.264 stream, without start codes.
        aac: AudioSpecificConfig of the AAC stream (ISO/IEC 14496-3).
        sample_rate: rate of the sound in Hz, which is also the clock of its track.
        priming: audio samples that the AAC encoder puts before the sound. Edit lists cut that
            time off both tracks; the first video frame is shown at ``video_start``.
        user_data: a ``udta`` box, or nothing.

    Returns:
        The bytes of both boxes.
    """
    # Durations are 0: nobody knows how long the stream will be, and players take the fragments'.
    clock = struct.pack(">4I I H 10x", 0, 0, 1000, 0, 0x10000, 0x100)
    mvhd = full_box(b"mvhd", 0, 0, clock, _MATRIX, bytes(24), struct.pack(">I", 3))
    size = struct.pack(">2I", width << 16, height << 16)
    video = _track(
        VIDEO,
        VIDEO_CLOCK,
        b"vide",
        full_box(b"vmhd", 0, 1, bytes(8)),
        _avc1(height, width, *parameter_sets),
        size,
        _edit(video_start(priming, sample_rate)),
    )
    audio = _track(
        AUDIO,
        sample_rate,
        b"soun",
        full_box(b"smhd", 0, 0, bytes(4)),
        _mp4a(aac, sample_rate),
        bytes(8),
        _edit(priming),
    )
    # ``trex`` is what makes players look for fragments at all; each fragment overrides its zeros.
    defaults = (
        full_box(b"trex", 0, 0, struct.pack(">5I", track, 1, 0, 0, 0)) for track in (VIDEO, AUDIO)
    )
    kind = box(b"ftyp", b"iso5", struct.pack(">I", 512), b"iso5iso6mp41")
    return kind + box(b"moov", mvhd, video, audio, box(b"mvex", *defaults), user_data)


def video_start(priming: int, sample_rate: int) -> int:
    """Presentation time of the first video frame in ticks of the video track's clock.

    The priming is heard before the sound by a player that ignores edit lists, as WebKitGTK does.
    The picture begins as much later, so that both stay together in such a player too; one that
    honours edit lists begins both at 0. Rounding costs 41 microseconds at most.

    Decoding begins at 0 and frames are shown that much later, as in files with B-frames: of a
    track that begins later, mkvmerge (74) forgets the time and still cuts it off, and GStreamer
    (1.22) cuts it off twice.
    """
    return round(priming * VIDEO_CLOCK / sample_rate)


def _edit(start: int) -> bytes:
    """Build an ``edts`` box that makes the presentation begin at ``start`` of the track's clock."""
    return box(b"edts", full_box(b"elst", 0, 0, struct.pack(">I I i I", 1, 0, start, 0x10000)))


def _track(
    number: int,
    clock: int,
    handler: bytes,
    media_header: bytes,
    sample_entry: bytes,
    size: bytes,
    edit: bytes,
) -> bytes:
    """Build a ``trak`` box whose sample tables are empty, for the samples are in fragments."""
    volume = 0x0100 if handler == b"soun" else 0
    tkhd = full_box(
        b"tkhd", 0, 3, struct.pack(">5I 8x 3H 2x", 0, 0, number, 0, 0, 0, 0, volume), _MATRIX, size
    )
    language = 0x55C4  # "und", undetermined
    mdhd = full_box(b"mdhd", 0, 0, struct.pack(">4I 2H", 0, 0, clock, 0, language, 0))
    hdlr = full_box(b"hdlr", 0, 0, bytes(4), handler, bytes(12), b"omniforcing\0")
    url = full_box(b"url ", 0, 1)  # flag 1: the media is in this file
    dinf = box(b"dinf", full_box(b"dref", 0, 0, struct.pack(">I", 1), url))
    tables = ((b"stts", 4), (b"stsc", 4), (b"stsz", 8), (b"stco", 4))
    empty = (full_box(kind, 0, 0, bytes(length)) for kind, length in tables)
    stsd = full_box(b"stsd", 0, 0, struct.pack(">I", 1), sample_entry)
    minf = box(b"minf", media_header, dinf, box(b"stbl", stsd, *empty))
    return box(b"trak", tkhd, edit, box(b"mdia", mdhd, hdlr, minf))


def _avc1(height: int, width: int, sps: bytes, pps: bytes) -> bytes:
    """Build the sample entry of H.264 video (ISO/IEC 14496-15, 5.3.3)."""
    # 0xFF: units have lengths of four bytes; 0xE1: one SPS follows. Bytes 1 to 3 of an SPS are its
    # profile, constraints and level.
    sps_set = struct.pack(">B3sBBH", 1, sps[1:4], 0xFF, 0xE1, len(sps)) + sps
    pps_set = struct.pack(">BH", 1, len(pps)) + pps
    # High profiles (100 and above) state their chroma format and depth again: 4:2:0, 8 bits.
    high = bytes((0xFD, 0xF8, 0xF8, 0)) if sps[1] >= 100 else b""
    shape = struct.pack(
        ">6x H 16x 2H 2I 4x H 32x Hh", 1, width, height, 0x480000, 0x480000, 1, 24, -1
    )
    # BT.709 primaries, transfer and matrix (1 each), 16 to 235: as the VUI in the SPS says too.
    colours = box(b"colr", b"nclx", struct.pack(">3HB", 1, 1, 1, 0))
    return box(b"avc1", shape, box(b"avcC", sps_set + pps_set, high), colours)


def _mp4a(config: bytes, sample_rate: int) -> bytes:
    """Build the sample entry of AAC audio with its descriptors (ISO/IEC 14496-14, 5.6)."""

    def descriptor(tag: int, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return bytes((tag, len(body))) + body

    # 0x40: MPEG-4 audio; 0x15: an audio stream.
    decoder = descriptor(4, struct.pack(">BB3xII", 0x40, 0x15, 0, 0), descriptor(5, config))
    stream = descriptor(3, struct.pack(">HB", AUDIO, 0), decoder, descriptor(6, b"\x02"))
    shape = struct.pack(">6x H 8x 2H 4x I", 1, 2, 16, sample_rate << 16)
    return box(b"mp4a", shape, full_box(b"esds", 0, 0, stream))


def fragment(number: int, video: TrackFragment, audio: TrackFragment) -> bytes:
    """Build the ``moof`` and ``mdat`` of one fragment; a track without frames is left out.

    Args:
        number: number of the fragment in the file, from 1.
        video: what it adds to the video track.
        audio: what it adds to the audio track.

    Returns:
        The bytes of both boxes.
    """
    numbered = ((VIDEO, video), (AUDIO, audio))
    tracks = [(track_number, track) for track_number, track in numbered if track.data]

    def moof(offsets: Sequence[int]) -> bytes:
        mfhd = full_box(b"mfhd", 0, 0, struct.pack(">I", number))
        placed = zip(tracks, offsets, strict=True)
        return box(b"moof", mfhd, *(_traf(*track, offset) for track, offset in placed))

    # Offsets count from the start of ``moof``, whose own length they do not change: it is built
    # once to be measured and once more with the offsets in it.
    first = len(moof([0] * len(tracks))) + 8  # 8: size and name of ``mdat``
    data, offsets = b"", []
    for _, track in tracks:
        offsets.append(first + len(data))
        data += b"".join(track.data)
    return moof(offsets) + box(b"mdat", data)


def _traf(number: int, track: TrackFragment, offset: int) -> bytes:
    """Build a ``traf`` box: whose frames, from when on, and where their bytes lie."""
    usual = _OTHER_FRAME if number == VIDEO else _KEYFRAME
    # tfhd 0x020028: offsets count from moof; default duration and flags follow.
    tfhd = full_box(b"tfhd", 0, 0x020028, struct.pack(">3I", number, track.duration, usual))
    tfdt = full_box(b"tfdt", 1, 0, struct.pack(">Q", track.start))
    # trun 0xA05: data offset, flags of the first sample, and for each a size and a delay.
    first = struct.pack(">IiI", len(track.data), offset, _KEYFRAME)
    samples = b"".join(struct.pack(">2I", len(data), track.delay) for data in track.data)
    return box(b"traf", tfhd, tfdt, full_box(b"trun", 0, 0xA05, first, samples))
