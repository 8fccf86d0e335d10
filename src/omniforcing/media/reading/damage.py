"""Damage of a file's tracks: lost packets, and frames that follow one with an error.

Decoders fill what was lost with what they last saw and call the result a frame. So what the demuxer
says of packets and the decoder of frames decides, in order of decoding, which frames are whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

# Packets after a marked one that are in doubt themselves: a parser gives a packet when it sees the
# next one, whose mark it then bears.
_IN_DOUBT = 1
# Seconds after a marked packet of the sound in which unmarked ones may still lack a part.
_SOUND_AFTER = 0.2
_GAP = 0.02  # seconds between packets of the sound that are a gap
_NEAR = 0.5  # seconds by which picture and sound lie apart in a file that lost both
_SLACK = 0.75  # share of a step that joints may add to one; a lost packet adds a whole step
_REORDER = 64  # packets within which a picture is shown after it was decoded
_EVEN = 0.9  # share of a track's packets that follow at its usual step where its rate is constant

Intervals = tuple[tuple[float, float], ...]


class _Judged(Protocol):
    whole: bool


Shown = TypeVar("Shown", bound=_Judged)


class Packet(NamedTuple):
    """What is known of a packet before it is decoded, in ticks of its track.

    Attributes:
        stamp: presentation time, or decoding time where a container has no others.
        duration: how long it lasts; 0 if unknown.
        decoded: decoding time.
        key: whether decoding can begin with it.
        marked: whether the demuxer says that data are missing in it or behind it.
    """

    stamp: int | None
    duration: int
    decoded: int | None = None
    key: bool = False
    marked: bool = False


class Damage(NamedTuple):
    """Intervals in seconds of the file's clock in which a track is not whole."""

    video: Intervals = ()
    audio: Intervals = ()


UNDAMAGED = Damage()


def damage_of(
    pictures: Sequence[Packet], sounds: Sequence[Packet], bases: tuple[float, float], counts: bool
) -> Damage:
    """Find when a picture and a sound lack data, or follow pictures that do.

    A mark of the demuxer alone proves nothing: it also stands where whole recordings, or segments
    of one, were joined. There the next keyframe follows at once and in time.

    Args:
        pictures: packets of the picture in order of decoding.
        sounds: packets of the sound.
        bases: seconds of a tick of each.
        counts: whether the container counts its pieces, as a broadcast's does, so that packets may
            be missing. It counts to 16, so one loss of 16 bears no mark.
    """
    heard, gaps = _sound(sounds, bases[1])
    return Damage(_pictures(pictures, bases[0], gaps if counts else None), heard)


def _pictures(packets: Sequence[Packet], base: float, gaps: Intervals | None) -> Intervals:
    step = _step(packets)
    doubted = [number for number, packet in enumerate(packets) if packet.marked]
    if gaps is not None:
        doubted = sorted({*doubted, *_lost_behind(packets, step, base, gaps)})
    found: list[tuple[float, float]] = []
    free = 0  # packets up to here are in an interval already
    for number in doubted:
        if number < free:
            continue
        sure = number + 1 + _IN_DOUBT
        end = next((n for n in range(sure, len(packets)) if packets[n].key), len(packets))
        if end == sure < len(packets) and _close(packets[number : end + 1], step).all():
            continue
        free = end
        begin = _begin(packets, number, end, step)
        until = packets[end].stamp if end < len(packets) else None
        found.append((begin * base, np.inf if until is None else until * base))
    return tuple(found)


def _lost_behind(
    packets: Sequence[Packet], step: float, base: float, gaps: Intervals
) -> Iterator[int]:
    """Yield the packets of an even track behind which others are missing without a mark.

    At its head, where a mark finds no packet to stand on, or where the sound has a gap too: a
    recorder that only drops frames goes on to record the sound.
    """
    close = _close(packets, step)
    if not len(close) or close.mean() <= _EVEN:
        return
    for number in map(int, np.flatnonzero(~close)):
        begin, end = ((packet.decoded or 0) * base for packet in packets[number : number + 2])
        near = any(gap[0] < end + _NEAR and gap[1] > begin - _NEAR for gap in gaps)
        if end > begin and not packets[number + 1].key and (number == 0 or near):
            yield number


def _sound(packets: Sequence[Packet], base: float) -> tuple[Intervals, Intervals]:
    """Find when a sound lacks data by its marks, and where its packets leave a gap."""
    found: list[tuple[float, float]] = []
    gaps: list[tuple[float, float]] = []
    due: float | None = None
    for packet in packets:
        if packet.stamp is None:
            continue
        begin = packet.stamp * base
        end = begin + packet.duration * base
        gap = due is not None and begin > due + _GAP
        in_doubt = bool(found) and due is not None and due <= found[-1][1]
        if gap and due is not None:
            gaps.append((due, begin))
        if packet.marked:
            if not in_doubt:
                found.append((begin, end))
            found[-1] = found[-1][0], end + _SOUND_AFTER
        elif gap and in_doubt:
            found[-1] = found[-1][0], max(found[-1][1], end)  # what the gap lacks was lost
        due = end
    return tuple(found), (*gaps, *found)


def within(intervals: Intervals, time: float) -> bool:
    """Return whether a time lies in one of some intervals."""
    return any(begin <= time < end for begin, end in intervals)


def _step(packets: Sequence[Packet]) -> float:
    """Return the usual ticks from one packet to the next, in order of decoding."""
    times = [packet.decoded for packet in packets if packet.decoded is not None]
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def _close(packets: Sequence[Packet], step: float) -> NDArray[np.bool_]:
    """Return for each packet after the first whether none is missing before it."""
    times = [np.nan if packet.decoded is None else packet.decoded for packet in packets]
    return np.diff(np.array(times, float)) <= (1 + _SLACK) * step


def _begin(packets: Sequence[Packet], number: int, end: int, step: float) -> float:
    """Return the tick after the last frame before that is surely shown where it belongs."""
    stamps = [packet.stamp for packet in packets[number:end] if packet.stamp is not None]
    first = min(stamps, default=np.inf)
    behind = packets[max(0, number - _REORDER) : number]
    before = [p.stamp for p in behind if p.stamp is not None and p.stamp < first]
    # Half a step: frames that were lost may belong before the marked one.
    return max(before) + step / 2 if before else 0.0


class Foresight(Generic[Shown]):
    """Judge which frames are whole, and hold back those that may turn out not to be.

    Frames are shown in another order than they are decoded in: one that was decoded after a damaged
    frame, and follows it, may come out before.

    Args:
        exact: whether each packet gives a frame, so that one that gives none was damaged.
    """

    def __init__(self, exact: bool) -> None:
        self._exact, self._sent = exact, 0
        self._failed: set[int] = set()  # times of packets that could not be decoded
        self._awaited: dict[int, int] = {}  # number of each packet by its time
        self._held: list[tuple[int, Shown]] = []
        self._broken: int | None = None  # packet from which on frames are damaged

    def sent(self, packet: Any) -> None:
        """Note a packet that goes to the decoder."""
        if packet.pts is not None:
            self._awaited[packet.pts] = self._sent
        self._sent += 1

    def failed(self, packet: Any) -> None:
        """Note that the last packet could not be decoded."""
        self._broken = self._sent - 1 if self._broken is None else self._broken
        if packet.pts is not None:
            self._failed.add(packet.pts)

    def whole(self, frame: Any, key: bool) -> bool:
        """Return whether a frame, which may be a keyframe, and all that it follows are whole."""
        number = self._awaited.get(frame.pts, self._sent)
        if self._broken is not None and key and number > self._broken:
            self._broken = None
        if frame.is_corrupt:
            self._broken = number if self._broken is None else min(number, self._broken)
            for held, other in self._held:
                if held > number:
                    other.whole = False
        return self._broken is None or number < self._broken

    def skipped(self, stamp: int | None) -> int | None:
        """Return the earliest time, before one, of a packet that should have given a frame."""
        times = self._awaited if self._exact else self._failed & self._awaited.keys()
        return min((at for at in times if stamp is not None and at < stamp), default=None)

    def came(self, stamp: int | None, frame: Shown) -> list[Shown]:
        """Hold a frame with the time of its packet; return those that are certain now."""
        number = -1
        if stamp is not None:
            number = self._awaited.get(stamp, -1)
            # Packets of an earlier time give no frame any more.
            self._awaited = {at: n for at, n in self._awaited.items() if at > stamp}
        self._held.append((number, frame))
        earliest = min(self._awaited.values(), default=self._sent)
        certain = 0
        while certain < len(self._held) and self._held[certain][0] < earliest:
            certain += 1
        ready, self._held = self._held[:certain], self._held[certain:]
        return [frame for _, frame in ready]

    def rest(self) -> list[Shown]:
        """Return what is still held."""
        held, self._held = self._held, []
        return [frame for _, frame in held]
