"""Kinds that copying without encoding leaves: joined broadcasts, films from AVI, moved boxes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av

from benchmarks.ingest.edits import Cuts, boxes, shown, with_edits
from benchmarks.ingest.kinds import AAC, X264, Kind, Make, Sources, encoded, ffmpeg

TRIMMED: Cuts = ((0.01, 6.4),)
JOINT = 4  # seconds: a whole number of the sound's frames, and where a clip ends anyway
AC3, DTS = "-c:a ac3 -b:a 448k", "-c:a dca -strict -2 -b:a 1400k"
MPEG2 = "-c:v mpeg2video -q:v 2 -bf 2"
# Matroska's names of codecs, of one length: as it is stored natively, and as AVI stored it.
NATIVE, FROM_AVI = b"V_MPEG4/ISO/ASP", b"V_MS/VFW/FOURCC"


def copies() -> list[Kind]:
    """List them, as ``kinds`` does."""
    made: dict[str, Make] = {
        "joined_ac3.ts": joined(f"{X264} -g 24 {AC3}"),
        "joined_eac3.ts": joined(f"{X264} -g 24 -c:a eac3 -b:a 448k"),
        "joined_dts.m2ts": joined(f"{X264} -g 24 {DTS}"),
        "joined_ac3.vob": joined(f"{MPEG2} {AC3}"),
        "two_sounds.ts": _two_sounds,
    }
    return [
        *(Kind(name, "ffmpeg", make) for name, make in made.items()),
        Kind("from_avi.mkv", "PyAV", _from_avi),
        Kind("edits_behind.mp4", "ffmpeg", _edits_behind, stamps=shown(TRIMMED, 156)),
    ]


def joined(options: str, at: tuple[int, ...] = (JOINT,)) -> Make:
    """Encode parts, which each begin their clock anew, and join them byte by byte."""

    def make(path: Path, sources: Sources) -> None:
        content = b""
        for start, end in zip((0, *at), (*at, None), strict=True):
            cut = f"-ss {start}" if end is None else f"-ss {start} -t {end - start}"
            part = path.with_name(f"part-{path.name}")
            ffmpeg(cut, "-i", sources.video(24), cut, "-i", sources.audio(), options, part)
            content += part.read_bytes()
            part.unlink()
        path.write_bytes(content)

    return make


def _two_sounds(path: Path, sources: Sources) -> None:
    """A broadcast whose second sound has more channels and bits: players take the first."""
    other = "-f lavfi -t 6.5 -i sine=f=200:r=48000 -map 0:v -map 1:a -map 2:a"
    coders = "-c:a:0 mp2 -b:a:0 192k -c:a:1 ac3 -b:a:1 448k -ac:a:1 6"
    ffmpeg("-i", sources.video(24), "-i", sources.audio(), other, X264, coders, path)


def _from_avi(path: Path, sources: Sources) -> None:
    """A film with B-frames that was copied from AVI: decoding times only, as mkvmerge writes it."""
    film = path.with_name(f"film-{path.name}")
    encoded("-c:v mpeg4 -bf 2 -q:v 2 -c:a flac")(film, sources)
    with av.open(str(film)) as old, av.open(str(path), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        picture = streams[old.streams.video[0].index]
        picture.codec_context.extradata = _bitmap(old.streams.video[0].codec_context)
        step = 0
        for packet in old.demux():
            if packet.size:
                if packet.stream.type == "video":
                    packet.pts = packet.dts = round(step / 24 / packet.time_base)
                    step += 1
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    film.unlink()
    content = path.read_bytes()
    assert content.count(NATIVE) == 1
    path.write_bytes(content.replace(NATIVE, FROM_AVI))


def _bitmap(codec: av.VideoCodecContext) -> bytes:
    """Write AVI's header of a track, BITMAPINFOHEADER."""
    extra = codec.extradata or b""
    size = (codec.width, codec.height)
    head = struct.pack("<IiiHH4sIiiII", 40 + len(extra), *size, 1, 24, b"XVID", 0, 0, 0, 0, 0)
    return head + extra


def _edits_behind(path: Path, sources: Sources) -> None:
    """An mp4 each of whose edit lists stands behind its track's media: the order is free."""
    encoded(f"{X264} -g 24 -bf 2 {AAC}")(path, sources)
    content = with_edits(path.read_bytes(), TRIMMED)
    path.write_bytes(_each(content, b"moov", lambda moov: _each(moov, b"trak", _edits_last)))


def _each(content: bytes, kind: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the content of all boxes of a kind; their lengths stay."""
    result = b""
    for found, at, size in boxes(content):
        box = content[at : at + size]
        result += box[:8] + change(box[8:]) if found == kind else box
    return result


def _edits_last(track: bytes) -> bytes:
    parts = [(kind, track[at : at + size]) for kind, at, size in boxes(track)]
    return b"".join(box for _, box in sorted(parts, key=lambda part: part[0] == b"edts"))
