"""Dolby Vision: pictures with hints in a NAL unit of their own, as phones and films have them.

No encoder at hand writes the hints without a master's, so they are written here, bit by bit (ETSI
TS 103 572): a curve that changes nothing and matrices of the base picture's colours.
"""

from __future__ import annotations

from pathlib import Path

import av

from benchmarks.ingest.fields import Bits, escaped
from benchmarks.ingest.kinds import Kind, Make, Sources, hdr

HEAD = bytes([62 << 1, 1])  # of the unit
DENOMINATOR = 23  # bits behind the point
YCC, IPT = 0, 2  # colour space of the signal


def dolby() -> list[Kind]:
    """List them, as ``kinds`` does."""
    own = "unknown colours"
    return [
        # As phones record: players that know nothing of it show HLG.
        Kind("dolby_vision_8.mp4", "ffmpeg", _with_hints(1, YCC)),
        # As films are sent: such players show Dolby's own colours, green and violet.
        Kind("dolby_vision_5.mp4", "ffmpeg", _with_hints(0, IPT), reject=own),
        Kind("dolby_vision_5.mkv", "ffmpeg", _with_hints(0, IPT), reject=own),
    ]


def _with_hints(profile: int, space: int) -> Make:
    """Put hints behind each picture of an HLG file."""
    content = hints(profile, space)
    behind = len(content).to_bytes(4, "big") + content

    def make(path: Path, sources: Sources) -> None:
        plain = path.with_name(f"plain-{path.name}")
        hdr("arib-std-b67")(plain, sources)
        with av.open(str(plain)) as old, av.open(str(path), "w") as new:
            streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
            for packet in old.demux():
                if not packet.size:
                    continue
                changed = packet
                if packet.stream.type == "video":
                    changed = av.Packet(bytes(packet) + behind)
                    changed.pts, changed.dts = packet.pts, packet.dts
                    changed.time_base, changed.duration = packet.time_base, packet.duration
                    changed.is_keyframe = packet.is_keyframe
                changed.stream = streams[packet.stream.index]
                new.mux(changed)
        plain.unlink()

    return make


def hints(profile: int, space: int) -> bytes:
    """Write the NAL unit for a picture of ten bits.

    Args:
        profile: of the hints: 0 where the base is Dolby's own, 1 where it is another's too.
        space: ``YCC`` or ``IPT``.
    """
    bits = Bits().fixed(25, 8).fixed(2, 6).fixed(18, 11).fixed(profile, 4).fixed(0, 4).fixed(1, 1)
    bits.fixed(0, 1).fixed(0, 2).golomb(DENOMINATOR).fixed(1, 2).fixed(space == IPT, 1)
    bits.golomb(2, 2, 4).fixed(0, 1).fixed(0, 3).fixed(0, 1).fixed(1, 1)  # ten bits, no residue
    bits.fixed(1, 1).fixed(0, 1).golomb(0, 0, 0)
    for _ in range(3):
        bits.golomb(0).fixed(0, 10).fixed(1023, 10)  # one part of the curve
    bits.golomb(0, 0)
    for _ in range(3):
        # A polynomial of the first order: 0 + 1 x. Signed numbers: 0 is 0, 1 is 1.
        bits.golomb(0, 0).fixed(0, 1)
        bits.golomb(0).fixed(0, DENOMINATOR).golomb(1).fixed(0, DENOMINATOR)
    bits.golomb(0, 0, 1)
    for value in (8192, 799, 1681, 8192, -933, 1091, 8192, 267, -5545):
        bits.fixed(value & 0xFFFF, 16)
    for offset in (0, 1 << 27, 1 << 27):
        bits.fixed(offset, 32)
    for value in (17081, -349, -349, -349, 17081, -349, -349, -349, 17081):
        bits.fixed(value & 0xFFFF, 16)
    bits.fixed(65535, 16).fixed(0, 16).fixed(0, 16).fixed(0, 32)
    bits.fixed(12, 5).fixed(space, 2).fixed(0, 2).fixed(1, 2)
    bits.fixed(7, 12).fixed(3079, 12).fixed(42, 10).golomb(0)
    bits.text += "0" * (-len(bits.text) % 8)
    content = bits.bytes(end="")
    whole = content + checksum(content[1:]).to_bytes(4, "big") + b"\x80"
    return HEAD + escaped(whole)


def checksum(content: bytes) -> int:
    """CRC-32 of MPEG-2."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value
