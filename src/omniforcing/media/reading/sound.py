"""Sound of a file as 16 kHz stereo on the clock that it shares with the picture.

Samples are placed by the stamps of their packets. Stamps that a container rounded are left alone;
where they part from the count of samples by more, the sound is stretched to follow them, and a jump
is a gap, which is silent, or an overlap, which is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.media.reading.clock import decode_packet, demux
from omniforcing.media.reading.edits import Part
from omniforcing.media.reading.mix import Samples, channel_names, stereo
from omniforcing.media.reading.runs import placed, runs_of
from omniforcing.media.reading.tracks import (
    HEAD_PACKETS,
    PathOrBytes,
    Rejected,
    find_tracks,
    open_container,
)


@dataclass(frozen=True)
class FirstSound:
    """Time of the first sample in seconds, rate in Hz and channels."""

    time: float
    rate: int
    channels: int


def first_sound(
    source: PathOrBytes, video: int, audio: int, parts: Sequence[Part] = ()
) -> FirstSound:
    """Decode the first frame of a sound track.

    Args:
        source: path or content of the file.
        video: number of the picture's track.
        audio: number of the sound's.
        parts: what an edit list of several parts plays of it.

    Raises:
        Rejected: if nothing at its head can be decoded.
    """
    with open_container(source, bool(parts)) as container:
        streams = [container.streams[video], container.streams[audio]]
        channel_names(streams[1])
        for time, frame in _frames(container, streams[1], streams, HEAD_PACKETS):
            if frame is not None:
                if parts:
                    time = parts[0].at + max(0.0, time - parts[0].start)
                return FirstSound(time, frame.sample_rate, frame.layout.nb_channels)
    raise Rejected("media.undecodable-sound", "no sound at its head can be decoded")


def _frames(
    container: Any, audio: Any, streams: list[Any], head: int | None = None
) -> Iterator[tuple[float, Any]]:
    """Yield times in seconds and decoded frames, from the first whole one; None after an error."""
    codec = audio.codec_context
    codec.thread_count = 1
    due: float | None = None
    packets = 0
    for packet in demux(container, streams):
        if packet.stream.index != audio.index:
            continue
        packets += 1
        if head is not None and due is None and packets > head:
            return
        try:
            frames = decode_packet(codec, packet)
        except av.FFmpegError:
            if due is not None:
                yield due, None
            continue
        for frame in frames:
            time = due or 0.0
            if frame.pts is not None:
                time = float(frame.pts * frame.time_base)
            due = time + frame.samples / frame.sample_rate
            if frame.samples:
                yield time, frame


@dataclass(frozen=True)
class Sound:
    """Sound of a file.

    Attributes:
        samples: float32 ``[2, N]`` at 16 kHz.
        damaged: intervals in seconds from the first sample that could not be decoded.
    """

    samples: Samples
    damaged: list[tuple[float, float]]


def read_sound(
    source: PathOrBytes,
    origin: float = 0.0,
    tracks: tuple[int, int] | None = None,
    parts: Sequence[Part] = (),
) -> Sound:
    """Decode the sound of a file and mix it to stereo.

    Mono goes to both sides. More channels are mixed after ITU-R BS.775, without LFE, and scaled so
    that nothing can clip. Two mono tracks that the file names left and right are the sides of one
    sound. Silence fills gaps and the time from ``origin`` to the first sample. The
    whole track is held in memory: 3 GB for an hour of 48 kHz.

    Args:
        source: path or content of the file.
        origin: time on the file's clock, in seconds, of the first sample that is returned.
        tracks: numbers of picture and sound in the file; those that ``find_tracks`` chooses if
            left out.
        parts: what an edit list of several parts plays of the sound.

    Raises:
        Rejected: if there is no sound, or none of it can be decoded.
    """
    with open_container(source) as container:
        if tracks is None:
            found = find_tracks(container)
            tracks = found[0].index, found[1].index
        picture, chosen = tracks
        audio = container.streams[chosen]
        side = _side(audio)
        other = _other_side(container, audio, side)
    sound = _read(source, origin, picture, chosen, parts)
    if other is None:
        return sound
    second = _read(source, origin, picture, other, parts)
    count = max(sound.samples.shape[1], second.samples.shape[1])
    sides = [
        np.pad(each.samples[0], (0, count - each.samples.shape[1])) for each in (sound, second)
    ]
    left_first = np.stack(sides if side == "FL" else sides[::-1])
    return Sound(left_first, sound.damaged + second.damaged)


def _side(audio: Any) -> str:
    """Return the name of a track's only channel, as FFmpeg names it; empty if it has more."""
    names = channel_names(audio) if audio.codec_context else []
    return names[0] if len(names) == 1 else ""


def _other_side(container: Any, audio: Any, side: str) -> int | None:
    """Find the track of the right side for one of the left, and the other way round.

    Cameras and recorders store each side as a track of its own, and name it.
    """
    wanted = {"FL": "FR", "FR": "FL"}.get(side)
    for stream in container.streams.audio if wanted else ():
        if stream is audio:
            continue
        if _side(stream) == wanted and stream.language == audio.language:
            return int(stream.index)
    return None


def _read(
    source: PathOrBytes, origin: float, video: int, audio: int, parts: Sequence[Part] = ()
) -> Sound:
    """Decode a track and mix it to stereo."""
    if parts:
        whole = _read_whole(source, parts[0].start, video, audio, edited=False)
        return _played(whole, parts, origin)
    return _read_whole(source, origin, video, audio)


def _played(whole: Sound, parts: Sequence[Part], origin: float) -> Sound:
    """Put parts of a track, which begins with the first of them, where an edit list plays them."""
    base, rate = parts[0].start, SAMPLE_RATE
    pieces: list[tuple[int, Samples]] = []
    damaged: list[tuple[float, float]] = []
    for part in parts:
        first = round((part.start - base) * rate)
        last = None if np.isinf(part.end) else round((part.end - base) * rate)
        pieces.append((round((part.at - origin) * rate), whole.samples[:, first:last]))
        for begin, end in whole.damaged:
            begin, end = max(begin + base, part.start), min(end + base, part.end)
            if begin < end:
                move = part.at - part.start - origin
                damaged.append((begin + move, end + move))
    samples = np.zeros((2, max(0, *(at + piece.shape[1] for at, piece in pieces))), np.float32)
    for at, piece in pieces:
        piece = piece[:, max(0, -at) :]
        samples[:, max(0, at) : max(0, at) + piece.shape[1]] = piece
    return Sound(samples, damaged)


def _read_whole(
    source: PathOrBytes, origin: float, video: int, audio: int, edited: bool = True
) -> Sound:
    """Decode a track from ``origin`` on, as the file's edit list plays it if ``edited``."""
    heard: list[tuple[float, int, Samples]] = []
    damaged: list[tuple[float, float]] = []
    lost: float | None = None
    with open_container(source, not edited) as container:
        streams = [container.streams[video], container.streams[audio]]
        names = channel_names(streams[1])
        for time, frame in _frames(container, streams[1], streams):
            if frame is None:
                lost = time if lost is None else lost
                continue
            if lost is not None:
                damaged.append((lost - origin, time - origin))
                lost = None
            heard.append((time, frame.sample_rate, stereo(frame, names)))
    if lost is not None:
        damaged.append((lost - origin, np.inf))
    return Sound(placed(runs_of(heard) if heard else [], origin), damaged)
