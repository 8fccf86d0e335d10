"""Event sync: how much better impacts seen and heard coincide than with another clip's sound.

F1 pools matched pairs over clips. Chance is the same figure over **every** pairing of a clip's
picture with another clip's sound, which is the mean over all cyclic derangements: it has no noise
of its own and does not depend on the order of the clips. Their difference, the margin, is the
measure; F1 alone rewards busy clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.errors import OmniForcingError

# An impact seen and one heard within this time match: two frames of 24 fps are 83 ms.
TOLERANCE_MS = 80.0
Array = NDArray[np.float64]
Seconds = Sequence[float]


@dataclass(frozen=True)
class WindowScore:
    """Sync of a set of clips within one window of time.

    Attributes:
        f1: F1 of each picture against its own sound, pooled over clips.
        shuffled_f1: F1 of each picture against other clips' sounds, which is chance.
        margin: ``f1 - shuffled_f1``.
        margin_error: jackknife standard error of the margin, over clips.
        events: all events of each clip, in picture and sound ``[N]``.
        hits: matched events of each picture with each sound ``[N, N]``.
    """

    f1: float
    shuffled_f1: float
    margin: float
    margin_error: float
    events: Array = field(repr=False, compare=False)
    hits: Array = field(repr=False, compare=False)

    def of_clips(self) -> list[dict[str, float]]:
        """Return each clip's part of the score, from which that of any of the clips follows.

        F1 of a set is the sum of ``sync_hits`` over that of ``sync_events``, chance that of
        ``sync_chance`` over the same. Chance is taken from all clips here, so that a clip which is
        drawn twice for an interval is not its own other clip.

        Returns:
            For each clip ``sync_events`` (in picture and sound), ``sync_hits`` (those that match),
            and ``sync_chance``, the mean hits of its picture with another clip's sound.
        """
        own = np.diag(self.hits)
        chance = (self.hits.sum(1) - own) / (len(own) - 1)
        columns = {"sync_events": self.events, "sync_hits": own, "sync_chance": chance}
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, map(float, row), strict=True)) for row in rows]


@dataclass(frozen=True)
class Sync:
    """Sync of a set of clips.

    Attributes:
        pooled: score at the full tolerance.
        strict: score at half the tolerance, which sees offsets that the full one forgives.
        precision: matched pairs per impact heard.
        recall: matched pairs per impact seen.
        offsets_ms: sound minus picture of each matched pair, in milliseconds.
        events_video: impacts seen per clip.
        events_audio: impacts heard per clip.
    """

    pooled: WindowScore
    strict: WindowScore
    precision: float
    recall: float
    offsets_ms: list[float]
    events_video: float
    events_audio: float

    @property
    def offset_ms(self) -> float | None:
        """Mean absolute offset in ms, None without a pair; near half the tolerance means chance."""
        return float(np.mean(np.abs(self.offsets_ms))) if self.offsets_ms else None

    @property
    def offset_signed_ms(self) -> float | None:
        """Mean offset in ms, None without a pair; positive when the sound is late."""
        return float(np.mean(self.offsets_ms)) if self.offsets_ms else None


def match(seen: Seconds, heard: Seconds, tolerance: float) -> list[tuple[int, int]]:
    """Pair impacts one to one: as many pairs as possible, then the least total offset.

    Args:
        seen: times in seconds of the impacts in the picture.
        heard: times in seconds of the impacts in the sound.
        tolerance: seconds within which two impacts match.

    Returns:
        Pairs of indices into ``seen`` and ``heard``; they do not depend on the order of either.
    """
    from scipy.optimize import linear_sum_assignment

    if not len(seen) or not len(heard):
        return []
    apart = np.abs(np.subtract.outer(np.asarray(seen), np.asarray(heard)))
    near = apart <= tolerance + 1e-9
    if not near.any():
        return []
    # The bonus for a pair is more than all offsets together, so one more pair always costs less.
    cost = np.where(near, apart - tolerance * (1 + apart.size), 0.0)
    assigned = zip(*linear_sum_assignment(cost), strict=True)
    return [(int(i), int(j)) for i, j in assigned if near[i, j]]


def score_sync(seen: Sequence[Seconds], heard: Sequence[Seconds], tolerance: float = 0.080) -> Sync:
    """Score the sync of a set of clips.

    Args:
        seen: for each clip, times in seconds of the impacts in its picture.
        heard: for each clip, times in seconds of the impacts in its sound.
        tolerance: seconds within which two impacts match.

    Returns:
        Scores, precision, recall and offsets.

    Raises:
        OmniForcingError: with fewer than 2 clips, for there is no other clip's sound.
    """
    pairs = []
    for clip_seen, clip_heard in zip(seen, heard, strict=True):
        for i, j in match(clip_seen, clip_heard, tolerance):
            pairs.append((clip_seen[i], clip_heard[j]))
    video, audio = sum(map(len, seen)), sum(map(len, heard))
    return Sync(
        pooled=score_windows(seen, heard, tolerance)[0],
        strict=score_windows(seen, heard, tolerance / 2)[0],
        precision=len(pairs) / max(1, audio),
        recall=len(pairs) / max(1, video),
        offsets_ms=[1000 * (h - s) for s, h in pairs],
        events_video=video / len(seen),
        events_audio=audio / len(heard),
    )


def score_windows(
    seen: Sequence[Seconds],
    heard: Sequence[Seconds],
    tolerance: float,
    edges: Seconds = (-np.inf, np.inf),
) -> list[WindowScore]:
    """Score the sync within windows of time.

    Clips are matched whole, then every event counts in its own window, so no pair is lost at a
    border.

    Args:
        seen: for each clip, times in seconds of the impacts in its picture.
        heard: for each clip, times in seconds of the impacts in its sound.
        tolerance: seconds within which two impacts match.
        edges: ascending borders of the windows in seconds; by default one window for everything.

    Returns:
        A score for each window.

    Raises:
        OmniForcingError: with fewer than 2 clips.
    """
    if len(seen) < 2:
        raise OmniForcingError(
            "data.too-few-clips",
            f"sync needs another clip's sound for comparison, found {len(seen)} clip; "
            "raise evaluate.clips",
        )
    events = np.array([_histogram([*s, *h], edges) for s, h in zip(seen, heard, strict=True)])
    hits = np.array([_hits_with_all(times, heard, tolerance, edges) for times in seen])
    return [_window_score(hits[..., w], events[..., w]) for w in range(len(edges) - 1)]


def _histogram(times: Seconds, edges: Seconds) -> Array:
    """Count times per window ``[W]``; those outside all windows do not count."""
    windows = len(edges) - 1
    places = np.searchsorted(np.asarray(edges), np.asarray(times, float), side="right") - 1
    inside = (places >= 0) & (places < windows)
    return np.bincount(places[inside], minlength=windows).astype(float)


def _hits(seen: Seconds, heard: Seconds, tolerance: float, edges: Seconds) -> Array:
    """Count the matched events of picture and sound per window ``[W]``."""
    events: list[float] = []
    for i, j in match(seen, heard, tolerance):
        events += seen[i], heard[j]
    return _histogram(events, edges)


def _hits_with_all(
    seen: Seconds, heard: Sequence[Seconds], tolerance: float, edges: Seconds
) -> list[Array]:
    """Count the hits of one picture with every clip's sound, ``[N, W]``."""
    return [_hits(seen, times, tolerance, edges) for times in heard]


def _window_score(hits: Array, events: Array) -> WindowScore:
    """Score one window.

    Args:
        hits: matched events of picture i with sound j ``[N, N]``.
        events: all events of clip i, in picture and sound ``[N]``.
    """
    # F1 is 2 pairs / (impacts seen + heard): matched events over all events. Over every pairing
    # with another clip each event is counted N - 1 times.
    count = len(events)
    own, total = np.diag(hits), events.sum()
    cross = hits.sum() - own.sum()
    f1, shuffled = _share(own.sum(), total), _share(cross, (count - 1) * total)
    # The jackknife: everything once more without clip i, which takes a row and a column of hits
    # with it, and their common element only once.
    own_left, total_left = own.sum() - own, total - events
    cross_left = cross - hits.sum(0) - hits.sum(1) + 2 * own
    left = zip(own_left, cross_left, total_left, strict=True)
    margins = np.array([_share(o, t) - _share(c, (count - 2) * t) for o, c, t in left])
    error = np.sqrt((count - 1) / count * ((margins - margins.mean()) ** 2).sum())
    return WindowScore(f1, shuffled, f1 - shuffled, float(error), events, hits)


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0
