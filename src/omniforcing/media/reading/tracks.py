"""Tracks of video files, packet by packet: time of every frame, and whether a file is whole.

Headers are not trusted: they round, and an mp4 whose download was cut off still opens and plays.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS
from omniforcing.media.reading.clock import demux
from omniforcing.media.reading.damage import (
    UNDAMAGED,
    Damage,
    Packet,
    damage_of,
)
from omniforcing.media.reading.edits import (
    Edits,
    edit_shift,
    end_played,
    played_parts,
    times_played,
)
from omniforcing.media.reading.stated import NOTHING, Stated, read_stated

Times = NDArray[np.floating[Any]]
PathOrBytes = Path | bytes  # a file, or its content

HEAD_PACKETS = 1000  # packets in which the first whole frame must come
_NOT_THE_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_SPECIAL_SOUND = (
    Disposition.comment
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.karaoke
)


class Rejected(OmniForcingError):
    """Error of a clip that cannot be used.

    Args:
        code: ``room.reason``; its second half in words is the ``reason`` that manifests count.
        detail: what was found in the file.
    """

    def __init__(self, code: str, detail: str) -> None:
        self.reason = code.partition(".")[2].replace("-", " ")
        self.detail = detail
        super().__init__(code, f"{self.reason}: {detail}")


@dataclass(frozen=True)
class MediaInfo:
    """Properties of a video file, as its packets and not its header state them.

    Times are in seconds on the clock that the streams share, sizes in pixels as the picture is
    seen: upright, cropped, with square pixels only if ``aspect`` is 1.

    Attributes:
        times: presentation times of the frames ``[T]``, ascending.
        video_end: end of the last frame.
        audio_start: time of the first sample.
        audio_end: end of the last audio packet.
        height: height of the upright picture.
        width: width of the upright picture.
        aspect: width of a pixel of the upright picture over its height.
        fps: mean frame rate.
        rate: sample rate of the sound in Hz.
        channels: audio channels.
        video_index: number of the picture's track in the file.
        audio_index: number of the sound's track in the file.
        video_shift: seconds by which FFmpeg's times of the picture are early (``edit_shift``).
        edits: what is played of the tracks, where an edit list has several parts.
        stated: what the container states about crop and colours of the picture.
        colour: how the colours are read, such as ``bt709 tv, untagged``.
        interlaced: whether the first frame is two fields.
        damage: when the tracks are not whole.
    """

    times: Times
    video_end: float
    audio_start: float
    audio_end: float
    height: int
    width: int
    aspect: float
    fps: float
    rate: int
    channels: int
    video_index: int = 0
    audio_index: int = 0
    video_shift: float = 0.0
    edits: Edits | None = None
    stated: Stated = NOTHING
    colour: str = ""
    interlaced: bool = False
    damage: Damage = UNDAMAGED

    @property
    def hdr(self) -> bool:
        """Whether the picture is of high dynamic range."""
        return self.colour.endswith(("pq", "hlg"))


@contextmanager
def open_container(source: PathOrBytes, whole: bool = False) -> Iterator[Any]:
    """Open a source with PyAV; an error of FFmpeg becomes ``Rejected``.

    Args:
        source: path or content of the file.
        whole: give all of its tracks, on their own clocks, and not what an edit list plays.
    """
    options = {"ignore_editlist": "1"} if whole else {}
    try:
        if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
            raise Rejected("media.empty-file", "0 bytes")
        file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        with file, av.open(file, metadata_errors="ignore", options=options) as container:
            yield container
    except (av.FFmpegError, OSError, UnicodeError) as error:
        raise Rejected("media.not-a-readable-video", reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Return what went wrong in an error's words, without paths or errno."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[-1][-200:] if text else type(error).__name__


def find_tracks(container: Any, language: str | None = None) -> tuple[Any, Any]:
    """Choose the picture and the sound that a player would play.

    Covers and thumbnails are no picture. The track that the file marks as default comes first, for
    sound one of the wanted language before it, and comments or descriptions last. A track of a
    codec that FFmpeg does not know is none, as to players.

    Raises:
        Rejected: if the file lacks a picture or sound, or no track of a kind has a known codec.
    """
    kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
    videos = [v for v in container.streams.video if not v.disposition & _NOT_THE_PICTURE]
    if not videos:
        raise Rejected("media.no-video-track", f"the file holds {kinds}")
    if not container.streams.audio:
        raise Rejected("media.no-audio-track", f"the file holds {kinds}")

    def sound_order(audio: Any) -> tuple[bool, bool, bool]:
        wanted = language is not None and audio.language == language
        default = bool(audio.disposition & Disposition.default)
        return not wanted, bool(audio.disposition & _SPECIAL_SOUND), not default

    def picture_order(video: Any) -> bool:
        return not video.disposition & Disposition.default

    pictures = _decodable(videos, "picture")
    sounds = _decodable(container.streams.audio, "sound")
    # Both sorts are stable: among equals the first track stays first.
    picture = sorted(pictures, key=picture_order)[0]
    sound = sorted(sounds, key=sound_order)[0]
    if container.format.name == "mpegts" and language is None:
        # A broadcast may hold several programmes. FFmpeg's best sound is the same one for all
        # tracks of a programme, though not the one that players play.
        best = container.streams.best
        own = best("audio", related=picture)
        same = [a for a in sounds if best("audio", related=a) is own]
        sound = min(same, key=sound_order, default=own or sound)
    return picture, sound


def _decodable(streams: Any, what: str) -> list[Any]:
    """Return the tracks whose codec is known; raise ``Rejected`` if there are none."""
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise Rejected("media.no-decoder", f"the codec of its {what} is unknown")
    return known


@dataclass(frozen=True)
class Tracks:
    """Picture and sound of a file as their packets describe them.

    Times are in seconds on the clock that the streams share.

    Attributes:
        video_index: number of the picture's track.
        audio_index: number of the sound's track.
        video_shift: seconds by which FFmpeg's times of the picture are early (``edit_shift``).
        edits: what is played of the tracks, where an edit list has several parts.
        stated: what the container states about crop and colours of the picture.
        times: presentation times of the pictures' packets ``[T]``, ascending; None if some have
            no stamp.
        frames: packets of the picture.
        step: length of a frame at the mean rate.
        video_end: end of the last picture; None if ``times`` is.
        audio_end: end of the last audio packet.
        fps: mean frame rate that the file states; None if it states none.
        damage: when they are not whole.
    """

    video_index: int
    audio_index: int
    video_shift: float
    edits: Edits | None
    stated: Stated
    times: Times | None
    frames: int
    step: float
    video_end: float | None
    audio_end: float
    fps: float | None
    damage: Damage


def read_tracks(source: PathOrBytes, language: str | None = None) -> Tracks:
    """Read every packet of a file and decode nothing.

    Args:
        source: path or content of the file.
        language: language of the sound to prefer, as the file names it (``eng``).

    Raises:
        Rejected: if it is empty, truncated, no readable video, or lacks picture or sound.
    """
    with open_container(source) as container:
        video, audio = find_tracks(container, language)
        edits = several_edits(source, container, video, audio)
        if edits is None:
            return _read_packets(source, container, video, audio, None)
        first, second = video.index, audio.index
    with open_container(source, whole=True) as container:
        streams = container.streams
        return _read_packets(source, container, streams[first], streams[second], edits)


def several_edits(source: PathOrBytes, container: Any, video: Any, audio: Any) -> Edits | None:
    """Read what is played of two tracks if an edit list has several parts; None if not.

    FFmpeg follows such lists packet by packet, up to 20 ms beside what a part says.

    Raises:
        Rejected: if a part is played at another rate, or again, or out of order.
    """
    if not container.format.name.startswith("mov"):
        return None
    parts = [played_parts(source, stream.id) for stream in (video, audio)]
    if not all(parts):
        raise Rejected("media.unusual-edits", "its edit list repeats, reorders or slows down parts")
    return Edits(*parts) if max(map(len, parts)) > 1 else None  # type: ignore[arg-type, misc]


def _read_packets(
    source: PathOrBytes, container: Any, video: Any, audio: Any, edits: Edits | None
) -> Tracks:
    packets: dict[int, list[Packet]] = {video.index: [], audio.index: []}
    stated = read_stated(source, container, video)
    shift = edit_shift(source, container, video) if edits is None else 0.0
    for packet in demux(container, [s for s in container.streams if s.type != "data"]):
        if packet.has_sidedata("encryption_info"):
            raise Rejected("media.encrypted", "only who has its key can decode it")
        if packet.size and not packet.is_discard:
            decoding = stated.unordered and packet.stream.index == video.index
            stamp = packet.dts if decoding else packet.pts
            key, marked = packet.is_keyframe, packet.is_corrupt
            entry = Packet(stamp, packet.duration or 0, packet.dts, key, marked)
            packets.setdefault(packet.stream.index, []).append(entry)
    _refuse_truncated(container, (video, audio), packets)
    fps = float(video.average_rate or 0) or None
    step = 1 / (fps or FPS)
    times = video_end = None
    # Frames are shown in the order of their decoding times, each at the least that is left.
    known = [packet for packet in packets[video.index] if packet.stamp is not None]
    stamps = sorted(known, key=attrgetter("stamp"))
    if len(stamps) == len(packets[video.index]):
        base = float(video.time_base)
        times = np.array([packet.stamp for packet in stamps]) * base + shift
        video_end = float(times[-1]) + (stamps[-1].duration * base or step)
    audio_end = _end(audio, packets[audio.index])
    if edits is not None:
        if times is not None and video_end is not None:
            times = times_played(times, video_end, edits.video)
            video_end = end_played(video_end, edits.video)
        audio_end = end_played(audio_end, edits.audio)
    return Tracks(
        video.index,
        audio.index,
        shift,
        edits,
        stated,
        times,
        len(packets[video.index]),
        step,
        video_end,
        audio_end,
        fps,
        damage_of(
            packets[video.index],
            packets[audio.index],
            (float(video.time_base), float(audio.time_base)),
            container.format.name == "mpegts",
        ),
    )


def _end(stream: Any, packets: list[Packet]) -> float:
    last = max((packet.stamp or 0) + packet.duration for packet in packets)
    return float(last * stream.time_base)


def _refuse_truncated(
    container: Any, streams: tuple[Any, Any], packets: dict[int, list[Packet]]
) -> None:
    """Reject a file whose index promises more than is there."""
    for stream in streams:
        if not packets[stream.index]:
            raise Rejected("media.truncated", f"the {stream.type} track holds no packet")
        # An mp4 with its index in front opens and plays until the data ends, so nothing but the
        # index shows that a download was cut off. Other containers are recorded and played as far
        # as they go: what is there of them is whole.
        due = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if container.format.name.startswith("mov") and due > container.size > 0:
            raise Rejected(
                "media.truncated",
                f"the {stream.type} track needs {due} bytes, the file has {container.size}",
            )
    stamps = [packet.stamp for packet in packets[streams[0].index] if packet.stamp is not None]
    if container.format.name == "mxf" and min(stamps, default=0) > (streams[0].start_time or 0):
        # FFmpeg then shows each picture when it is decoded, a frame late.
        raise Rejected("media.truncated", "it ends before the index of its pictures' times")
