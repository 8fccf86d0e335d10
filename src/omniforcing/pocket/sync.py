"""Event sync: do impacts seen and impacts heard coincide more than another clip's sound would make them?

F1 pools matched pairs over clips. Chance is the same figure over **every** pairing of a clip's picture with another clip's
sound, which is the mean over all cyclic derangements: it has no noise of its own and does not depend on the clips' order.
Their difference, the margin, is the measure; F1 alone rewards busy clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """F1 of picture against own sound, against other clips' sounds, their difference and its jackknife standard error."""

    f1: float
    shuffled_f1: float
    margin: float
    margin_error: float


@dataclass(frozen=True)
class Sync:
    """Sync of a set of clips. Offsets are of matched pairs, sound minus picture, in milliseconds; None without a pair."""

    pooled: WindowScore
    strict: WindowScore  # at half the tolerance, which sees offsets that the full one forgives
    precision: float  # matched pairs per impact heard
    recall: float  # matched pairs per impact seen
    offsets_ms: list[float]
    events_video: float  # per clip
    events_audio: float

    @property
    def offset_ms(self) -> float | None:
        """Mean absolute offset. A random match within t averages t / 2, so near 40 ms at 80 ms means chance."""
        return float(np.mean(np.abs(self.offsets_ms))) if self.offsets_ms else None

    @property
    def offset_signed_ms(self) -> float | None:
        """Mean offset: positive when the sound is late."""
        return float(np.mean(self.offsets_ms)) if self.offsets_ms else None


def match(seen: Seconds, heard: Seconds, tolerance: float) -> list[tuple[int, int]]:
    """Pair impacts one to one within ``tolerance`` seconds: as many pairs as possible, then the least total offset.

    Returns indices into ``seen`` and ``heard``; which pairs are made does not depend on the order of either.
    """
    from scipy.optimize import linear_sum_assignment

    if not len(seen) or not len(heard):
        return []
    apart = np.abs(np.subtract.outer(np.asarray(seen), np.asarray(heard)))
    near = apart <= tolerance + 1e-9
    if not near.any():
        return []
    worth = np.where(near, apart - tolerance * (1 + apart.size), 0.0)
    return [
        (int(i), int(j)) for i, j in zip(*linear_sum_assignment(worth), strict=True) if near[i, j]
    ]


def score_sync(seen: Sequence[Seconds], heard: Sequence[Seconds], tolerance: float = 0.080) -> Sync:
    """Score clips whose pictures show impacts at ``seen[i]`` and whose sounds have them at ``heard[i]`` (seconds).

    Raises:
        OmniForcingError: with fewer than 2 clips, for there is no other clip's sound.
    """
    pairs = [
        (s[i], h[j]) for s, h in zip(seen, heard, strict=True) for i, j in match(s, h, tolerance)
    ]
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
    """F1, chance and margin in each window between ascending ``edges`` (seconds); by default one window for everything.

    Clips are matched whole, then every event counts in its own window, so no pair is lost at a border.

    Raises:
        OmniForcingError: with fewer than 2 clips.
    """
    if len(seen) < 2:
        raise OmniForcingError(
            "data.too-few-clips",
            f"sync needs another clip's sound for comparison, found {len(seen)} clip; raise evaluate.clips",
        )
    events = np.array([_histogram([*s, *h], edges) for s, h in zip(seen, heard, strict=True)])
    hits = np.array([[_hits(s, h, tolerance, edges) for h in heard] for s in seen])
    return [_window_score(hits[..., w], events[..., w]) for w in range(len(edges) - 1)]


def _histogram(times: Seconds, edges: Seconds) -> Array:
    places = np.searchsorted(np.asarray(edges), np.asarray(times, float), side="right") - 1
    return np.bincount(
        places[(places >= 0) & (places < len(edges) - 1)], minlength=len(edges) - 1
    ).astype(float)


def _hits(seen: Seconds, heard: Seconds, tolerance: float, edges: Seconds) -> Array:
    """Matched events of both streams per window, ``[W]``."""
    pairs = match(seen, heard, tolerance)
    return _histogram([seen[i] for i, _ in pairs] + [heard[j] for _, j in pairs], edges)


def _window_score(hits: Array, events: Array) -> WindowScore:
    """Scores from ``hits[i, j]``, matched events of picture i with sound j, and ``events[i]``, all events of clip i."""
    count = len(events)
    own, total = np.diag(hits), events.sum()
    cross = hits.sum() - own.sum()
    f1, shuffled = _share(own.sum(), total), _share(cross, (count - 1) * total)
    # The jackknife: everything once more without clip i.
    own_left, total_left = own.sum() - own, total - events
    cross_left = cross - hits.sum(0) - hits.sum(1) + 2 * own
    left = zip(own_left, cross_left, total_left, strict=True)
    margins = np.array([_share(o, t) - _share(c, (count - 2) * t) for o, c, t in left])
    error = np.sqrt((count - 1) / count * ((margins - margins.mean()) ** 2).sum())
    return WindowScore(f1, shuffled, f1 - shuffled, float(error))


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0
