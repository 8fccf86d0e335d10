"""Measures of picture and sound together, of clips that nothing is known about."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from omniforcing.core.layout import FPS
from omniforcing.evaluation.measures.base import Measure
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.curves import RATE, Array, correlogram, events
from omniforcing.pocket.sync import TOLERANCE_MS, WindowScore, score_windows

LONGEST = 0.5  # seconds of the largest offset that is looked for
APART = 2.0  # least seconds between the middles of the two parts whose offsets tell a drift
Events = tuple[list[float], list[float]]


class OnsetMotion(Measure):
    """Base: events in picture and sound, one figure of their agreement."""

    protocol = (
        f"peaks of motion change and spectral flux, matched one to one within {TOLERANCE_MS:g} ms"
    )
    least = 2
    asks = "in which something moves or sounds"

    def observe(self, clip: Clip) -> Events | None:
        seen, heard = events(clip.motion, FPS), events(clip.onsets, RATE)
        return (seen, heard) if seen or heard else None

    def lacking(self, seen: Sequence[Events]) -> str:
        for part, missing in enumerate(("nothing moves suddenly", "no sound begins")):
            if not any(clip[part] for clip in seen):
                return f"{missing} in any of {len(seen)} clips"
        return ""

    def value(self, seen: Sequence[Events]) -> float:
        return self.of_score(_score(seen))

    def of_score(self, score: WindowScore) -> float:
        """The figure of a score."""
        raise NotImplementedError

    def interval(self, seen: Sequence[Any]) -> tuple[float, float] | None:
        del seen
        # A clip that is drawn twice would be its own "other clip", so chance would rise: no
        # resampling. The margin has the jackknife's error; it is the figure to compare.
        return None


def _score(seen: Sequence[Events]) -> WindowScore:
    """Score the events of clips; three measures and an interval need the same score."""
    return _score_of(tuple((tuple(picture), tuple(sound)) for picture, sound in seen))


@lru_cache(maxsize=1)
def _score_of(seen: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]) -> WindowScore:
    pictures, sounds = zip(*seen, strict=True)
    return score_windows(pictures, sounds, TOLERANCE_MS / 1000)[0]


class OnsetMotionMargin(OnsetMotion):
    """F1 of onsets against changes of motion, less the F1 with other clips' sounds."""

    name = "onset_motion_margin"

    def of_score(self, score: WindowScore) -> float:
        return score.margin

    def interval(self, seen: Sequence[Any]) -> tuple[float, float] | None:
        score = _score(seen)
        return score.margin - 1.96 * score.margin_error, score.margin + 1.96 * score.margin_error


class OnsetMotionF1(OnsetMotion):
    """F1 of onsets against changes of motion."""

    name = "onset_motion_f1"

    def of_score(self, score: WindowScore) -> float:
        return score.f1


class OnsetMotionChance(OnsetMotion):
    """The same F1 with the sounds of all other clips."""

    name = "onset_motion_chance"

    def of_score(self, score: WindowScore) -> float:
        return score.shuffled_f1


class AvOffset(Measure):
    """Offset of the sound at which the two curves agree best; positive when the sound is late."""

    name = "av_offset"
    unit = "ms"
    has_ratio = False
    asks = "that move and sound"
    protocol = f"largest correlation of motion change and spectral flux within {LONGEST:g} s"

    def observe(self, clip: Clip) -> Array | None:
        found = correlogram(clip.motion, clip.onsets, LONGEST)
        return found if found.any() else None

    def value(self, seen: Sequence[Array]) -> float:
        # The curves of all clips together: one alone may have a chance peak.
        return _lag(np.mean(seen, 0))


class AvDrift(Measure):
    """Change of the offset in ten seconds, between the first and the last half of clips."""

    name = "av_drift"
    unit = "ms in 10 s"
    has_ratio = False
    asks = f"of {2 * APART:g} s or more whose halves both move and sound"
    protocol = f"difference of the halves' av_offset, of clips of {2 * APART:g} s or more"
    parts: ClassVar[int] = 2

    def observe(self, clip: Clip) -> tuple[Array, float] | None:
        apart = clip.seconds / self.parts
        if apart < APART:
            return None
        halves = []
        for half in range(self.parts):
            motion = _part(clip.motion, FPS, half * apart, apart)
            onsets = _part(clip.onsets, RATE, half * apart, apart)
            halves.append(correlogram(motion, onsets, LONGEST))
        return (np.stack(halves), apart) if all(half.any() for half in halves) else None

    def value(self, seen: Sequence[tuple[Array, float]]) -> float:
        early, late = np.mean([halves for halves, _ in seen], 0)
        return 10 * (_lag(late) - _lag(early)) / float(np.mean([apart for _, apart in seen]))


def _part(curve: Array, rate: float, begin: float, seconds: float) -> Array:
    first = round(begin * rate)
    return curve[first : first + round(seconds * rate)]


def _lag(correlation: Array) -> float:
    """Shift of the largest value, in ms."""
    return 1000 * (int(correlation.argmax()) - len(correlation) // 2) / RATE
