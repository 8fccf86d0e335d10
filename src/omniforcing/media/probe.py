"""Probe video files packet by packet: tracks, time of every frame, and whether a file is whole.

Headers are not trusted: they round, and an mp4 whose download was cut off still opens and plays.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS

Times = NDArray[np.floating[Any]]
PathOrBytes = Path | bytes  # a file, or its content

# Seconds by which a stream may end before its header says: containers round, and the length of the
# last packet is a guess.
END_SLACK = 0.5


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

    Times are in seconds on the clock that the streams share, sizes in pixels after rotation.

    Attributes:
        times: presentation times of the frames ``[T]``, ascending.
        video_end: end of the last frame.
        audio_start: time of the first audio packet.
        audio_end: end of the last audio packet.
        height: height of the upright picture.
        width: width of the upright picture.
        aspect: width of a pixel over its height.
        fps: mean frame rate.
        rate: sample rate of the sound in Hz.
        channels: audio channels.
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


@contextmanager
def open_container(source: PathOrBytes) -> Iterator[Any]:
    """Open a source with PyAV; an error of FFmpeg becomes ``Rejected``."""
    try:
        if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
            raise Rejected("media.empty-file", "0 bytes")
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            yield container
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        raise Rejected(
            "media.not-a-readable-video", getattr(error, "strerror", None) or str(error)
        ) from error


def probe(source: PathOrBytes) -> MediaInfo:
    """Read every packet of a file and decode its first frame.

    Args:
        source: path or content of the file.

    Returns:
        Properties of its first video and audio track.

    Raises:
        Rejected: if it is empty, truncated, no readable video, or lacks picture or sound.
    """
    with open_container(source) as container:
        video, audio = find_tracks(container)
        packets: dict[int, list[_Packet]] = {video.index: [], audio.index: []}
        for packet in container.demux(video, audio):
            if packet.size and not packet.is_discard:
                packets[packet.stream.index].append(_Packet(packet.pts, packet.duration or 0))
        _refuse_truncated(container, video, audio, packets)
        times, video_end = _frame_times(video, packets[video.index])
        sound = packets[audio.index]
        height, width = _upright_size(source, video.index)
        return MediaInfo(
            times=times,
            video_end=video_end,
            audio_start=float((sound[0].pts or 0) * audio.time_base),
            audio_end=_end(audio, sound),
            height=height,
            width=width,
            aspect=float(video.sample_aspect_ratio or 1),
            fps=float(video.average_rate or 0) or len(times) / max(video_end - times[0], 1e-9),
            rate=audio.rate,
            channels=audio.channels,
        )


class _Packet(NamedTuple):
    pts: int | None
    duration: int


def _end(stream: Any, packets: list[_Packet]) -> float:
    return float(max((packet.pts or 0) + packet.duration for packet in packets) * stream.time_base)


def find_tracks(container: Any) -> tuple[Any, Any]:
    """Return the first video and audio track; a cover picture is no video."""
    kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
    cover = Disposition.attached_pic
    videos = (stream for stream in container.streams.video if not stream.disposition & cover)
    video = next(videos, None)
    if video is None:
        raise Rejected("media.no-video-track", f"the file holds {kinds}")
    if not container.streams.audio:
        raise Rejected("media.no-audio-track", f"the file holds {kinds}")
    return video, container.streams.audio[0]


def _refuse_truncated(
    container: Any, video: Any, audio: Any, packets: dict[int, list[_Packet]]
) -> None:
    """Reject a file whose tracks end before its index or its header says."""
    for stream in (video, audio):
        if not packets[stream.index]:
            raise Rejected("media.truncated", f"the {stream.type} track holds no packet")
        # An mp4 with its index in front opens and plays until the data ends, so nothing but the
        # index shows that a download was cut off.
        due = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if due > container.size:
            raise Rejected(
                "media.truncated",
                f"the {stream.type} track needs {due} bytes, the file has {container.size}",
            )
    end = max(_end(stream, packets[stream.index]) for stream in (video, audio))
    promised = (container.duration or 0) / av.time_base
    if end < promised - END_SLACK:
        raise Rejected("media.truncated", f"it ends at {end:.2f} s of {promised:.2f} s")


def _frame_times(video: Any, packets: list[_Packet]) -> tuple[Times, float]:
    """Return presentation times ``[T]`` and the end of the last frame, in seconds."""
    step = 1 / float(video.average_rate or FPS)
    stamps = sorted(packet for packet in packets if packet.pts is not None)
    # Some containers, such as AVI, have no time stamps: their frame rate is constant.
    if len(stamps) < len(packets):
        times = np.arange(len(packets)) * step
        return times, float(times[-1] + step)
    times = np.array([packet.pts for packet in stamps]) * float(video.time_base)
    return times, float(times[-1]) + (stamps[-1].duration * float(video.time_base) or step)


def _upright_size(source: PathOrBytes, index: int) -> tuple[int, int]:
    """Return height and width of the first frame after the rotation that the file asks for."""
    # Opened anew: probing has read this container to its end.
    with open_container(source) as container:
        frame = next(container.decode(container.streams[index]), None)
    if frame is None:
        raise Rejected("media.not-a-readable-video", "no frame can be decoded")
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
