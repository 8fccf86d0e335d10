"""Fields: half pictures of every other line, which become frames here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
from av.filter import Graph
from av.video.reformatter import ColorRange

from omniforcing.media.reading.frames.colour import UNSPECIFIED
from omniforcing.media.reading.frames.picture import Picture


def woven(pictures: Iterator[Picture], clock: Fraction) -> Iterator[Picture]:
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


def deinterlaced(pictures: Iterator[Picture], clock: Fraction) -> Iterator[Picture]:
    """Pass pictures through, from the first interlaced one on through FFmpeg's ``bwdif``."""
    filter_ = _Deinterlacer(clock)
    for picture in pictures:
        if picture.frame is None:
            yield from filter_.end()  # what waits comes before what is missing
            yield picture
        elif picture.interlaced or filter_.runs:
            yield from filter_.next(picture)
        else:
            yield picture
    yield from filter_.end()


class _Deinterlacer:
    """The filter, which needs a frame's neighbours and so holds frames back."""

    def __init__(self, clock: Fraction) -> None:
        self._clock = clock
        self._graph: Graph | None = None
        self._size: tuple[Any, ...] = ()
        self._waiting: list[tuple[Picture, int, int]] = []  # with matrix and range

    @property
    def runs(self) -> bool:
        return self._graph is not None

    def next(self, picture: Picture) -> Iterator[Picture]:
        """Take a picture and yield those that it completes. Only interlaced ones are changed."""
        frame = picture.frame
        size = (frame.width, frame.height, frame.format.name)
        if size != self._size:
            yield from self.end()
        if self._graph is None:
            self._graph = _graph(frame, self._clock, "bwdif", mode="send_frame", deint="interlaced")
            self._size = size
        # Each keeps its own stamp.
        frame.pts = frame.pts if frame.pts is not None else frame.dts
        self._waiting.append((picture, frame.colorspace, frame.color_range))
        # For a format that is not the filter's own, FFmpeg would convert stated colours to others.
        frame.colorspace, frame.color_range = UNSPECIFIED, ColorRange.UNSPECIFIED
        self._graph.vpush(frame)
        yield from self._completed()

    def end(self) -> Iterator[Picture]:
        """Yield all that it holds; the next picture begins anew."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._completed()
            self._graph = None

    def _completed(self) -> Iterator[Picture]:
        assert self._graph is not None
        while self._waiting:
            try:
                frame = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            # The filter keeps number and order.
            picture, frame.colorspace, frame.color_range = self._waiting.pop(0)
            yield replace(picture, frame=frame)
