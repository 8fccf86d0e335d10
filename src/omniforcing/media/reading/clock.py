"""Packets of a file on one clock, which does not jump where the file's own does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
from av.format import Flags as FormatFlags

# Seconds by which the clock of a broadcast may go forward, and back, within a recording.
FORWARD, BACK = 10.0, 0.1
LARGE = 1.0  # seconds of a jump from which on a packet that belongs before it can be told


def is_broadcast(container: Any) -> bool:
    """Return whether a container's clock may jump and its pixels change their shape midway."""
    return bool(container.format.flags & FormatFlags.ts_discont.value)


def demux(container: Any, streams: list[Any]) -> Iterator[Any]:
    """Yield the packets of ``streams`` with their times on one clock that does not jump.

    Yields:
        Packets that hold data and are to be shown; the last one of each stream is empty, to flush
        its decoder.
    """
    joints = _Joints() if is_broadcast(container) else None
    for packet in container.demux(*streams):
        if not packet.size and (packet.dts is not None or packet.pts is not None):
            continue  # AVI marks a frame that is shown again by an empty packet
        stamp = packet.dts if packet.dts is not None else packet.pts
        if joints is not None and packet.size and stamp is not None:
            base = float(packet.time_base)
            length = (packet.duration or 0) * base
            ticks = round(joints.shift(packet.stream.index, stamp * base, length) / base)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
        yield packet


class _Joints:
    """Clock of a broadcast, which jumps where recordings were joined.

    Everything behind a jump is moved so that the first packet follows the one before it, as in
    players.
    """

    def __init__(self) -> None:
        self._moved = self._before = 0.0  # seconds: now, and before the last large jump
        self._ends: dict[int, float] = {}  # of each track's last packet

    def shift(self, track: int, stamp: float, length: float) -> float:
        """Return the seconds by which a track's next packet is moved."""
        shift = self._moved
        due = self._ends.get(track, stamp + shift)
        # A track that paused is far behind itself, but not behind the others, as after a jump.
        latest = max([due, *self._ends.values()])
        if self._is_left_over(stamp, due):
            shift = self._before
        elif not due - BACK <= stamp + shift <= latest + FORWARD:
            jump = due - (stamp + shift)
            if abs(jump) > LARGE:
                self._before = shift
            shift = self._moved = shift + jump
        self._ends[track] = stamp + shift + length
        return shift

    def _is_left_over(self, stamp: float, due: float) -> bool:
        """Whether a packet belongs before the last jump: parsers of sound hold one back."""
        now, then = stamp + self._moved, stamp + self._before
        return abs(now - then) > LARGE and abs(then - due) <= BACK < abs(now - due)


def decode_packet(codec: Any, packet: Any) -> list[Any]:
    """Return the frames that a packet of ``demux`` completes; the empty one flushes the decoder."""
    try:
        frames: list[Any] = codec.decode(packet if packet.size else None)
    except av.error.EOFError:  # flushed twice
        return []
    return frames
