"""Frames of a video track by time: decoded in order, upright, in one colour space.

Nothing is asked for by number and nothing is sought: containers and decoders disagree about the
number of a frame wherever pictures are hidden, doubled or shown before the keyframe that they
follow. Frames are taken by their own stamps, and what could not be decoded is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from omniforcing.core.layout import FPS
from omniforcing.media.reading.clock import decode_packet, demux, is_broadcast
from omniforcing.media.reading.damage import Foresight, within
from omniforcing.media.reading.edits import SLIVER, Part
from omniforcing.media.reading.frames.colour import describe
from omniforcing.media.reading.frames.fields import deinterlaced, woven
from omniforcing.media.reading.frames.picture import Picture
from omniforcing.media.reading.frames.upright import orientation, refuse_stretched
from omniforcing.media.reading.stated import Crop
from omniforcing.media.reading.tracks import (
    HEAD_PACKETS,
    MediaInfo,
    PathOrBytes,
    Rejected,
    Tracks,
    open_container,
)

LOOK_AHEAD = 0.5 / FPS  # seconds by which a source frame may be shown before its time
EPSILON = 1e-6  # seconds: time stamps are rounded to a file's clock
# Decoders that themselves hold back frames whose references are missing. Others show grey, so
# theirs are dropped up to the first keyframe.
_CAREFUL = {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video"}
# Decoders that read the transparency of WebM, which FFmpeg's own leave aside.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclass(frozen=True)
class FirstPicture:
    """Geometry of the first frame that can be shown, upright, and its time in seconds."""

    time: float
    height: int
    width: int
    aspect: float
    colour: str
    interlaced: bool


def first_picture(source: PathOrBytes, tracks: Tracks) -> FirstPicture:
    """Decode up to the first frame that can be shown.

    Raises:
        Rejected: if there is none at the head of the file, or its colours are unknown.
    """
    with open_container(source, tracks.edits is not None) as container:
        stream = container.streams[tracks.video_index]
        picture = next(decode(container, tracks, HEAD_PACKETS), None)
        if picture is None:
            raise Rejected("media.undecodable-frames", "no frame at its head can be decoded")
        frame = picture.frame
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        turned, (height, width) = orientation(frame)[0], _size(frame, tracks.stated.crop)
        refuse_stretched(frame, aspect)
        aspect = 1 / aspect if turned else aspect
        words = describe(frame, tracks.stated.tags).words
        return FirstPicture(picture.time, height, width, aspect, words, picture.interlaced)


def sizes(source: PathOrBytes, info: MediaInfo) -> Iterator[tuple[int, int]]:
    """Yield height and width of the pictures at which decoding can begin, upright."""
    with open_container(source, info.edits is not None) as container:
        video = container.streams[info.video_index]
        codec, crop = video.codec_context, info.stated.crop
        codec.thread_count = 1
        for packet in demux(container, [video]):
            if packet.size and not packet.is_keyframe:
                continue
            try:
                frames = decode_packet(codec, packet)
            except av.FFmpegError:
                continue
            for frame in frames:
                yield _size(frame, crop)


def _size(frame: Any, crop: Crop) -> tuple[int, int]:
    """Return height and width of a frame as it is shown, upright."""
    height = frame.height - crop.top - crop.bottom
    width = frame.width - crop.left - crop.right
    return (width, height) if orientation(frame)[0] else (height, width)


def decode(
    container: Any, tracks: Tracks | MediaInfo, head: int | None = None
) -> Iterator[Picture]:
    """Yield the frames of a track in order of time, from the first that can be shown.

    Args:
        container: the open file.
        tracks: its picture and its sound, on whose packets too the file's clock is followed.
        head: packets of the picture after which the first frame must have come.
    """
    video = container.streams[tracks.video_index]
    pictures = _decoded(container, tracks, head)
    if video.codec_context.name == "hevc":
        pictures = woven(pictures, video.time_base)
    pictures = _in_order(deinterlaced(pictures, video.time_base))
    if tracks.edits is not None:
        pictures = _played(pictures, tracks.edits.video)
    for picture in pictures:
        picture.stated = tracks.stated
        yield picture


def _played(pictures: Iterator[Picture], parts: Sequence[Part]) -> Iterator[Picture]:
    """Yield what an edit list plays of pictures in order, at its times."""
    left = list(parts)
    picture = next(pictures, None)
    while picture is not None and left:
        after = next(pictures, None)
        end = np.inf if after is None else after.time
        while left and left[0].start < end:
            part = left[0]
            begin = max(picture.time, part.start)
            if min(end, part.end) - begin > SLIVER:
                yield replace(picture, time=begin - part.start + part.at)
            if part.end > end:
                break  # the next picture belongs to it too
            left.pop(0)
        picture = after


def _decoded(container: Any, tracks: Tracks | MediaInfo, head: int | None) -> Iterator[Picture]:
    """Yield frames as the decoder gives them, and a picture without a frame after an error."""
    video, shift = container.streams[tracks.video_index], tracks.video_shift
    audio = container.streams[tracks.audio_index]
    codec = _decoder(video)
    codec.thread_count = 1
    step = shown = 1 / float(video.average_rate or FPS)
    last: float | None = None
    careful, packets = codec.name in _CAREFUL, 0
    stamped = tracks.stated.stamped
    # So that each frame tells which packet it comes from.
    codec.copy_opaque = stamped is not None
    certain = Foresight[Picture](exact=codec.name == "hevc")
    shapes = _Shapes() if is_broadcast(container) else None
    # Decoding times that wait for the frame that they belong to, where a container has no others.
    order: list[int] | None = [] if tracks.stated.unordered else None
    for packet in demux(container, [video, audio]):
        if packet.stream.index != video.index:
            continue
        packets += 1
        if head is not None and last is None and packets > head:
            return
        if order is not None and packet.dts is not None:
            heappush(order, packet.dts)
        if stamped is not None:
            packet.opaque = packets - 1
        certain.sent(packet)
        try:
            frames = decode_packet(codec, packet)
        except av.FFmpegError:
            certain.failed(packet)
            if order:
                order.pop()
            if last is not None:
                yield from certain.came(None, Picture(last + EPSILON, None, False))
            continue
        if shapes is not None:
            shapes.decoded(packet, codec)
        for frame in frames:
            stamp = frame.pts
            if order is not None:
                # Frames come out in order of display, so each takes the least time that waits.
                stamp = heappop(order) if order else None
            # Some decoders do not mark keyframes; their packets are.
            key = frame.key_frame or (packet.is_keyframe and not codec.has_b_frames)
            if last is None and not (careful or key):
                continue
            if stamped is not None and last is not None and not _is_stored(frame, stamped):
                stamp = None
            if stamp is not None:
                time = float(stamp * video.time_base) + shift
            else:
                time = 0.0 if last is None else last + shown
            # A film's frames are shown for two or three fields, in turn.
            shown = float((frame.duration or 0) * video.time_base) or step
            whole = certain.whole(frame, key)
            if last is None and not whole:
                continue
            skipped = certain.skipped(frame.pts)
            if last is not None and skipped is not None:
                lost = Picture(float(skipped * video.time_base) + shift, None, False)
                yield from certain.came(None, lost)
            last = time
            wider = 1.0 if shapes is None else shapes.wider(frame)
            picture = Picture(time, frame, whole, frame.interlaced_frame, wider)
            yield from certain.came(frame.pts, picture)
    yield from certain.rest()


class _Shapes:
    """Shapes of a broadcast's pixels, which change between programmes.

    Only the decoder knows them (PyAV 18.1), and only of the packet that it was last given. Other
    containers state one shape for all.
    """

    def __init__(self) -> None:
        self._first = 0.0
        self._waiting: dict[int | None, float] = {}  # by their packets' times

    def decoded(self, packet: Any, codec: Any) -> None:
        self._waiting[packet.pts] = float(codec.sample_aspect_ratio or 0)

    def wider(self, frame: Any) -> float:
        """Return how much wider the pixels of a frame are than those of the first."""
        shape = self._waiting.pop(frame.pts, 0.0) or self._first
        self._first = self._first or shape
        return shape / self._first if shape else 1.0


def _is_stored(frame: Any, stamped: bytes) -> bool:
    number = frame.opaque
    return number is not None and number < len(stamped) and bool(stamped[number])


def _decoder(video: Any) -> Any:
    """Return the decoder of a track: one that reads its transparency, if it has any."""
    codec = video.codec_context
    name = _WITH_ALPHA.get(codec.name) if video.metadata.get("alpha_mode") == "1" else None
    if name not in av.codecs_available:
        return codec
    with_alpha = av.CodecContext.create(name, "r")
    with_alpha.extradata = codec.extradata
    return with_alpha


def _in_order(pictures: Iterator[Picture]) -> Iterator[Picture]:
    """Drop pictures whose time lies before that of one already given, as players do."""
    last = -np.inf
    for picture in pictures:
        if picture.time >= last:
            last = picture.time
            yield picture


class PictureReader:
    """Pictures of a file at rising times, decoded in order once.

    Args:
        source: path or content of the file.
        info: what ``probe`` found in it.
    """

    def __init__(self, source: PathOrBytes, info: MediaInfo) -> None:
        self._source, self._info = source, info
        self.reformatter = VideoReformatter()
        self._restart()

    def _restart(self) -> None:
        self._pictures = self._read()
        self._shown = next(self._pictures, None)
        self._next = next(self._pictures, None)

    def _read(self) -> Iterator[Picture]:
        with open_container(self._source, self._info.edits is not None) as container:
            yield from decode(container, self._info)

    def at(self, time: float) -> Picture:
        """Return the picture to show at a time: the last one that is due, or a nearer next one.

        The next one may be shown by up to half an output frame early, if that is nearer. So rates
        above 24 fps are sampled without a mean delay, and a frame that a slow or variable rate
        holds stays until its successor is due. Times before the last asked ones begin anew.

        Raises:
            Rejected: if it, or what it follows, cannot be decoded.
        """
        if self._shown is not None and time < self._shown.time - LOOK_AHEAD - EPSILON:
            self._restart()
        while self._next is not None and self._is_due(time):
            self._shown, self._next = self._next, next(self._pictures, None)
        shown = self._shown
        if shown is None or not shown.whole:
            raise Rejected("media.undecodable-frames", f"frames at {time:.2f} s are damaged")
        lost = self._info.damage.video
        if within(lost, time) or within(lost, shown.time + EPSILON):
            found = f"packets of the picture at {time:.2f} s were lost on the way"
            raise Rejected("media.undecodable-frames", found)
        return shown

    def _is_due(self, time: float) -> bool:
        assert self._next is not None and self._shown is not None
        early, late = self._next.time - time, time - self._shown.time
        if early <= EPSILON:
            return True
        return early < late - EPSILON and early <= LOOK_AHEAD + EPSILON
