"""Frames of a video track by time: decoded in order, upright, in one colour space.

Nothing is asked for by number and nothing is sought: containers and decoders disagree about the
number of a frame wherever pictures are hidden, doubled or shown before the keyframe that they
follow. Frames are taken by their own stamps, and what could not be decoded is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from heapq import heappop, heappush
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from omniforcing.core.layout import FPS
from omniforcing.media.reading.colour import Colour, convert, describe, to_rgb
from omniforcing.media.reading.damage import Foresight, within
from omniforcing.media.reading.edits import SLIVER, Part
from omniforcing.media.reading.stated import NOTHING, Stated
from omniforcing.media.reading.tracks import (
    DECODING_TIMES,
    HEAD_PACKETS,
    MediaInfo,
    PathOrBytes,
    Rejected,
    Tracks,
    decode_packet,
    demux,
    open_container,
)
from omniforcing.media.reading.upright import orientation, refuse_stretched, upright

LOOK_AHEAD = 0.5 / FPS  # seconds by which a source frame may be shown before its time
EPSILON = 1e-6  # seconds: time stamps are rounded to a file's clock
# Decoders that themselves hold back frames whose references are missing. Others show grey, so
# theirs are dropped up to the first keyframe.
_CAREFUL = {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video"}
# Decoders that read the transparency of WebM, which FFmpeg's own leave aside.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclass
class Picture:
    """A decoded frame and when it is shown.

    Attributes:
        time: seconds on the file's clock.
        frame: the decoded frame; None where frames are missing.
        whole: whether it and all that it follows were decoded without an error.
        interlaced: whether it was two fields in the file.
        stated: what the container states about it.
        colour: how its colours are read.
    """

    time: float
    frame: Any
    whole: bool
    interlaced: bool = False
    stated: Stated = NOTHING
    colour: Colour | None = None
    _pixels: NDArray[Any] | None = field(default=None, repr=False)

    def pixels(self, reformatter: VideoReformatter) -> NDArray[Any]:
        """Return the upright RGB picture ``[H, W, 3]``, computed once, as ``to_rgb`` does."""
        if self._pixels is None:
            self.colour = describe(self.frame, self.stated.tags)
            rgb = to_rgb(self.frame, self.colour, reformatter)
            height, width = rgb.shape[:2]
            crop = self.stated.crop
            rgb = rgb[crop.top : height - crop.bottom, crop.left : width - crop.right]
            self._pixels = upright(rgb, orientation(self.frame))
        return self._pixels

    def rgb(self, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        """Return the upright picture in BT.709, uint8 ``[H, W, 3]``."""
        pixels = self.pixels(reformatter)
        assert self.colour is not None
        return convert(pixels, self.colour)


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
        crop = tracks.stated.crop
        height = frame.height - crop.top - crop.bottom
        width = frame.width - crop.left - crop.right
        turned = orientation(frame)[0]
        refuse_stretched(frame, aspect)
        if turned:
            height, width, aspect = width, height, 1 / aspect
        words = describe(frame, tracks.stated.tags).words
        return FirstPicture(picture.time, height, width, aspect, words, picture.interlaced)


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
        pictures = _woven(pictures, video.time_base)
    pictures = _in_order(_deinterlaced(pictures, video.time_base))
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
    # Decoding times that wait for the frame that they belong to, where a container has no others.
    order: list[int] | None = [] if container.format.name in DECODING_TIMES else None
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
            picture = Picture(time, frame, whole, frame.interlaced_frame)
            yield from certain.came(frame.pts, picture)
    yield from certain.rest()


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


def _woven(pictures: Iterator[Picture], clock: Fraction) -> Iterator[Picture]:
    """Join fields that are frames of half the height, as HEVC's decoder gives them, in pairs.

    Such a field is of either kind of lines. One without its other leaves a frame that is missing.
    """
    first: Picture | None = None
    for picture in pictures:
        if first is not None:
            joined = _joined(first.frame, picture.frame, clock) if picture.interlaced else None
            whole = joined is not None and first.whole and picture.whole
            yield replace(first, frame=joined, whole=whole)
            first = None
            if joined is not None:
                continue
        if picture.interlaced:
            first = picture
        else:
            yield picture
    if first is not None:
        yield replace(first, frame=None, whole=False)


def _joined(first: Any, second: Any, clock: Fraction) -> Any:
    """Return the frame of two fields; None if they are not of one size and of either kind."""
    sizes = {(field.width, field.height, field.format.name) for field in (first, second)}
    top, other_top = (
        _filtered([field], clock, "select", expr="eq(interlace_type,TOPFIRST)") is not None
        for field in (first, second)
    )
    if len(sizes) > 1 or top == other_top:
        return None
    return _filtered([first, second], clock, "weave", first_field="top" if top else "bottom")


def _filtered(frames: Sequence[Any], clock: Fraction, name: str, **options: str) -> Any:
    """Return the first frame that a filter makes of some; None if it makes none."""
    graph = _graph(frames[0], clock, name, **options)
    for frame in frames:
        graph.vpush(frame)
    try:
        return graph.vpull()
    except (av.error.BlockingIOError, av.error.EOFError):
        return None


def _graph(frame: Any, clock: Fraction, name: str, **options: str) -> Graph:
    """Make a graph of one of FFmpeg's filters for frames like one."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=clock
    )
    graph.link_nodes(source, graph.add(name, **options), graph.add("buffersink")).configure()
    return graph


def _deinterlaced(pictures: Iterator[Picture], clock: Fraction) -> Iterator[Picture]:
    """Pass pictures through, from the first interlaced one on through FFmpeg's ``bwdif``."""
    graph: Graph | None = None
    size: tuple[Any, ...] = ()
    waiting: list[Picture] = []
    for picture in pictures:
        frame = picture.frame
        if frame is None and graph is not None:  # what waits comes before what is missing
            yield from _pull(graph, waiting, flush=True)
            graph = None
        if graph is None and (frame is None or not picture.interlaced):
            yield picture
            continue
        found = (frame.width, frame.height, frame.format.name)
        if graph is None or found != size:
            if graph is not None:
                yield from _pull(graph, waiting, flush=True)
            graph = _graph(frame, clock, "bwdif", mode="send_frame", deint="interlaced")
            size = found
        # Only frames that say so are deinterlaced; each keeps its own stamp.
        frame.pts = frame.pts if frame.pts is not None else frame.dts
        waiting.append(picture)
        graph.vpush(frame)
        yield from _pull(graph, waiting)
    if graph is not None:
        yield from _pull(graph, waiting, flush=True)


def _pull(graph: Graph, waiting: list[Picture], flush: bool = False) -> Iterator[Picture]:
    if flush:
        graph.vpush(None)
    while waiting:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        picture = waiting.pop(0)  # the filter keeps number and order
        yield Picture(picture.time, frame, picture.whole, picture.interlaced)


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
