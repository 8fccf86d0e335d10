"""Films on DVDs and television: 24 pictures a second, shown for three and two fields in turn."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

from benchmarks.ingest.kinds import Kind, Sources, ffmpeg, run

RATE = Fraction(24000, 1001)
FIELD = Fraction(1001, 60000)  # seconds
CODER = "-c:v mpeg2video -q:v 2 -bf 2 -g 12 -pix_fmt yuv420p -c:a mp2 -b:a 256k"
STAMPS = tuple(
    float((number // 4 * 10 + (0, 3, 5, 8)[number % 4]) * FIELD) for number in range(156)
)


def films() -> list[Kind]:
    """List them, as ``kinds`` does."""
    how = {"fps": float(RATE), "stamps": STAMPS}
    return [
        *(
            Kind(f"film_pulldown.{suffix}", "PyAV", pulled_down, **how)  # type: ignore[arg-type]
            for suffix in ("mpg", "vob", "ts", "mkv")
        ),
        Kind("gst_film_pulldown.mpg", "gst-launch-1.0", _gstreamer, **how),  # type: ignore[arg-type]
    ]


def pulled_down(path: Path, sources: Sources) -> None:
    """Write a film with flags that repeat fields, and the times that result."""
    even = path.with_name(f"even-{path.name}.nut")
    ffmpeg("-i", sources.video(float(RATE)), "-i", sources.audio(), CODER, even)
    muxer = {".mpg": "mpeg", ".vob": "vob", ".ts": "mpegts", ".mkv": "matroska"}[path.suffix]
    with av.open(str(even)) as old, av.open(str(path), "w", format=muxer) as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        clock = Fraction(1, 90000)
        flags, count = Flags(), 0
        packets = [packet for packet in old.demux() if packet.size]
        # Where the first picture is shown, which is put at 0.
        first = min(p.pts * p.time_base for p in packets if p.stream.type == "video")
        for packet in packets:
            stream = packet.stream
            if stream.type == "video":
                packet, number = flags.set(packet)
                packet.time_base = clock
                packet.pts = round(STAMPS[number] / clock)
                packet.dts = round((STAMPS[count] - 4 * FIELD) / clock)
                count += 1
            else:
                packet.pts -= round(first / packet.time_base)
                packet.dts = packet.pts
            packet.stream = streams[stream.index]
            new.mux(packet)
    even.unlink()


class Flags:
    """Sets the flags of one MPEG-2 picture after the other, in order of decoding."""

    def __init__(self) -> None:
        self._group = self._next = 0  # first picture of the group; of the one after

    def set(self, packet: av.Packet) -> tuple[av.Packet, int]:
        """Return a packet whose picture repeats a field if it is due, and its number as shown."""
        data, number = bytearray(bytes(packet)), 0
        place = data.find(b"\0\0\1")
        while 0 <= place < len(data) - 8:
            kind, inner = data[place + 3], data[place + 4] >> 4
            if kind == 0xB3:  # sequence: 30000/1001 frames a second
                data[place + 7] = data[place + 7] & 0xF0 | 4
            elif kind == 0xB8:  # group
                self._group = self._next
            elif kind == 0x00:  # picture
                number = self._group + (data[place + 4] << 2 | data[place + 5] >> 6)
                self._next = max(self._next, number + 1)
            elif kind == 0xB5 and inner == 1:  # the sequence is of fields
                data[place + 5] &= 0xF7
            elif kind == 0xB5 and inner == 8:
                top_first = 0x80 * (number % 4 in (0, 3))
                data[place + 7] = data[place + 7] & 0x7D | top_first | 2 * (number % 2 == 0)
                data[place + 8] |= 0x80  # a whole picture
            place = data.find(b"\0\0\1", place + 3)
        changed = av.Packet(bytes(data))
        changed.is_keyframe = packet.is_keyframe
        return changed, number


def _gstreamer(path: Path, sources: Sources) -> None:
    """The same by mjpegtools, which make DVDs."""
    raw = path.with_suffix(".source.mkv")
    ffmpeg("-i", sources.video(float(RATE)), "-c:v ffv1 -pix_fmt yuv420p", raw)
    line = (
        f"filesrc location={raw} ! matroskademux ! avdec_ffv1 ! videoconvert ! "
        "mpeg2enc format=3 pulldown-3-2=true quantisation=2 bitrate=4000 ! queue ! mux. "
        f"filesrc location={sources.audio()} ! wavparse ! audioconvert ! "
        "avenc_mp2 bitrate=256000 ! queue ! mux. mplex format=3 name=mux ! "
        f"filesink location={path}"
    )
    run("gst-launch-1.0", "-q", *line.split())
    raw.unlink()
