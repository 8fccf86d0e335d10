"""Samples of a track in their places, though stamps scatter, drift and jump.

Frames that follow each other are a run: their count of samples keeps the time, and the run is
stretched where their stamps say that the count drifts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.media.reading.mix import Samples

# Seconds between the time of an audio frame and the end of the one before from which on they may be
# a gap or an overlap. Recorders that stamp what comes when it comes are off by as much, and back
# soon after: up to ``SURE`` it is a gap only if the stamps of ``LASTING`` seconds agree.
GAP, SURE, LASTING = 0.02, 0.1, 0.5
DRIFT = 0.002  # seconds by which stamps may part from the count of samples before it is followed
KNOT = 0.5  # seconds over which stamps are averaged to find the drift, at least
SURENESS = 5.0  # standard deviations of an average that ``DRIFT`` shall be
TAPS = 32  # of the windowed sinc that stretches
BLOCK = 60  # seconds that are resampled at a time, which bounds memory


@dataclass
class Run:
    """Frames of one rate that follow each other without a jump."""

    start: float
    rate: int
    parts: list[Samples] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # samples before each part
    times: list[float] = field(default_factory=list)  # seconds, as stamped
    length: int = 0

    def add(self, time: float, part: Samples) -> None:
        self.counts.append(self.length)
        self.times.append(time)
        self.parts.append(part)
        self.length += part.shape[1]

    def samples(self) -> Samples:
        """Return the run at 16 kHz, stretched where its stamps drift."""
        whole = self._at_16_khz()
        nominal = np.array(self.counts) / self.rate
        drift = np.array(self.times) - self.start - nominal
        if np.abs(_averaged(nominal, drift)[1]).max() <= DRIFT:
            return whole
        return _stretch(whole, *_knots(nominal, drift, self.length / self.rate))

    def _at_16_khz(self) -> Samples:
        if self.rate == SAMPLE_RATE:
            return np.concatenate(self.parts, 1)
        import torch

        from omniforcing.media.mel import resample

        # Each block with a second on either side, so that no seam is heard.
        done: list[Samples] = []
        for begin in range(0, self.length, BLOCK * self.rate):
            first = max(0, begin - self.rate)
            source = self._between(first, begin + (BLOCK + 1) * self.rate)
            skip = (begin - first) // self.rate * SAMPLE_RATE
            part = resample(torch.from_numpy(source), self.rate).numpy()
            done.append(part[:, skip : skip + BLOCK * SAMPLE_RATE].copy())
        return np.concatenate(done, 1)

    def _between(self, first: int, last: int) -> Samples:
        begin = bisect_right(self.counts, first) - 1
        some = np.concatenate(self.parts[begin : bisect_left(self.counts, last)], 1)
        return some[:, first - self.counts[begin] : last - self.counts[begin]]


def runs_of(heard: Sequence[tuple[float, int, Samples]]) -> list[Run]:
    """Split frames of (time, rate, samples) where the rate changes or the clock jumps."""
    rates = np.array([rate for _, rate, _ in heard])
    lengths = np.array([part.shape[1] for *_, part in heard]) / rates
    ends = np.cumsum(lengths)
    off = np.array([time for time, *_ in heard]) - (ends - lengths)
    jumps = np.diff(off)
    sure = (np.abs(jumps) > SURE) | (np.diff(rates) != 0)
    begins = np.concatenate([[0], np.flatnonzero(sure) + 1, [len(heard)]])
    splits = [0]
    for place in np.flatnonzero(sure | (np.abs(jumps) > GAP)) + 1:
        if not sure[place - 1]:
            # Frames up to half a second off, between the jumps that are sure.
            next_one = begins[np.searchsorted(begins, place, side="right")]
            near = np.searchsorted(ends, ends[place - 1] + np.array([-LASTING, LASTING]))
            before = off[max(splits[-1], near[0]) : place]
            after = off[place : max(place + 1, min(next_one, near[1]))]
            forth, back = after.min() - before.max(), before.min() - after.max()
            if max(forth, back) < GAP / 2:
                continue
        splits.append(int(place))
    runs = []
    for first, last in zip(splits, [*splits[1:], len(heard)], strict=True):
        run = Run(heard[first][0], heard[first][1])
        for time, _, part in heard[first:last]:
            run.add(time, part)
        runs.append(run)
    return runs


def _averaged(nominal: NDArray[Any], drift: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return times and the median drift around them, one each ``KNOT`` seconds or more.

    Over as many as make the medians surer than ``DRIFT``, where stamps scatter.
    """
    times, medians, window = _medians(nominal, drift, KNOT)
    scatter = 1.5 * float(np.median(np.abs(drift - medians[window])))
    packets = (SURENESS * scatter / DRIFT) ** 2
    each = len(nominal) / max(1, len(times))
    if packets <= each:
        return times, medians
    return _medians(nominal, drift, KNOT * packets / each)[:2]


def _medians(
    nominal: NDArray[Any], drift: NDArray[Any], knot: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return times and the median drift of each window, and the window of each time."""
    # A last window that is not full goes to the one before.
    most = max(0, int((nominal[-1] - nominal[0]) / knot + 0.5) - 1)
    numbers = np.minimum(((nominal - nominal[0]) / knot).astype(int), most)
    _, firsts, window = np.unique(numbers, return_index=True, return_inverse=True)
    times = np.array([group.mean() for group in np.split(nominal, firsts[1:])])
    medians = np.array([np.median(group) for group in np.split(drift, firsts[1:])])
    return times, medians, window


def _knots(
    nominal: NDArray[Any], drift: NDArray[Any], length: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return nominal times from 0 to ``length`` and the drift to follow there."""
    ends = np.array([0.0, length])
    # A sound card's clock is a little fast or slow throughout: one rate, so that tones stay even.
    slope, offset = np.polyfit(nominal, drift, 1) if len(drift) > 1 else (0.0, drift[0])
    left = _averaged(nominal, drift - (offset + slope * nominal))[1]
    if np.abs(left).max() <= DRIFT:
        return ends, offset + slope * ends
    times, averages = _averaged(nominal, drift)
    outside = [averages[0], averages[-1]]
    if len(times) > 1:
        slopes = np.diff(averages)[[0, -1]] / np.diff(times)[[0, -1]]
        outside = [
            averages[0] - slopes[0] * times[0],
            averages[-1] + slopes[1] * (length - times[-1]),
        ]
    return (
        np.concatenate([ends[:1], times, ends[1:]]),
        np.concatenate([outside[:1], averages, outside[1:]]),
    )


def _stretch(samples: Samples, nominal_knots: NDArray[Any], drift: NDArray[Any]) -> Samples:
    """Move the samples ``[2, N]`` at nominal times by ``drift`` seconds, linearly between."""
    true_knots = np.maximum.accumulate(nominal_knots + drift)
    first, last = round(true_knots[0] * SAMPLE_RATE), round(true_knots[-1] * SAMPLE_RATE)
    out = np.zeros((2, max(0, last)), np.float32)
    padded = np.pad(samples, ((0, 0), (TAPS, TAPS)))
    for begin in range(max(0, first), last, SAMPLE_RATE):
        wanted = np.arange(begin, min(last, begin + SAMPLE_RATE)) / SAMPLE_RATE
        place = np.interp(wanted, true_knots, nominal_knots) * SAMPLE_RATE
        out[:, begin : begin + len(wanted)] = _interpolate(padded, place)
    return out


def _interpolate(padded: Samples, place: NDArray[Any]) -> Samples:
    """Read samples between samples by a windowed sinc."""
    whole = np.floor(place).astype(int)
    offsets = np.arange(-TAPS // 2 + 1, TAPS // 2 + 1)
    distance = (place - whole)[:, None] - offsets
    window = np.cos(np.pi * distance / TAPS) ** 2
    weights = (np.sinc(distance) * window).astype(np.float32)
    taps = np.clip(whole[:, None] + offsets + TAPS, 0, padded.shape[1] - 1)
    result: Samples = np.einsum("cnt,nt->cn", padded[:, taps], weights)
    return result


def placed(runs: list[Run], origin: float) -> Samples:
    """Join runs by their times; what overlaps the one before is cut."""
    parts: list[Samples] = []
    count = 0
    for run in runs:
        lead = round((run.start - origin) * SAMPLE_RATE) - count
        part = run.samples()[:, max(0, -lead) :]
        run.parts.clear()
        parts += [np.zeros((2, max(0, lead)), np.float32), part]
        count += max(0, lead) + part.shape[1]
    return np.concatenate(parts, 1) if parts else np.zeros((2, 0), np.float32)
