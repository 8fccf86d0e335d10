"""What a measure is: it observes each clip once, and makes one figure of all observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from omniforcing.evaluation.measures.clips import Clip, Skipped

RESAMPLES = 200  # of the clips, for an interval
SHARE = 95  # per cent of the resampled figures that an interval holds


@dataclass(frozen=True)
class Figure:
    """A measure of a set of clips.

    Attributes:
        value: the figure.
        low: lower end of its interval of 95 %, over which clips it was measured on; None for one
            clip.
        high: upper end.
        n: number of clips that could be measured.
    """

    value: float
    low: float | None
    high: float | None
    n: int


class Measure(ABC):
    """Base of all measures.

    Attributes:
        name: name of the figure; one that uses an encoder names it.
        unit: its unit, empty for a plain number.
        protocol: how it is taken (rates, windows, tolerances); figures of different protocols must
            not be compared.
        least: clips that it needs at least.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    protocol: ClassVar[str]
    least: ClassVar[int] = 1

    @abstractmethod
    def observe(self, clip: Clip) -> Any:
        """Take what the figure needs from a clip; None where the clip has nothing to measure."""

    @abstractmethod
    def value(self, seen: Sequence[Any]) -> float:
        """Make the figure of the observations of at least ``least`` clips."""

    def of_clip(self, seen: Any) -> float | None:
        """The figure of one clip; None for a measure of sets."""
        return self.value([seen]) if self.least == 1 else None

    def interval(self, seen: Sequence[Any]) -> tuple[float, float] | None:
        """Interval of 95 % over which clips were drawn, by resampling them."""
        if len(seen) < 2:
            return None
        generator = np.random.default_rng(0)
        values = []
        for _ in range(RESAMPLES):
            drawn = generator.integers(0, len(seen), len(seen))
            values.append(self.value([seen[index] for index in drawn]))
        low, high = np.percentile(values, [(100 - SHARE) / 2, (100 + SHARE) / 2])
        return float(low), float(high)


class MeanOfClips(Measure):
    """Base of the measures that are one number per clip, and its mean over clips."""

    @abstractmethod
    def observe(self, clip: Clip) -> float | None:
        """The number of a clip; None where it has none."""

    def value(self, seen: Sequence[float]) -> float:
        return float(np.mean(seen))


@dataclass(frozen=True)
class Row:
    """A measure's line in the table: a figure, or the reason why there is none."""

    measure: Measure
    figure: Figure | None
    why: str = ""


@dataclass(frozen=True)
class Measured:
    """All measures of a set of clips.

    Attributes:
        rows: one for each measure.
        clips: name, caption, seconds and figures of each clip.
        skipped: files that could not be measured.
    """

    rows: list[Row]
    clips: list[dict[str, Any]]
    skipped: list[Skipped]


def measure_clips(clips: Iterable[Clip | Skipped], measures: Sequence[Measure]) -> Measured:
    """Measure clips, each looked at once.

    Args:
        clips: the clips; those that could not be read are passed on.
        measures: what to measure.
    """
    observed: dict[str, list[Any]] = {measure.name: [] for measure in measures}
    table: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for clip in clips:
        if isinstance(clip, Skipped):
            skipped.append(clip)
            continue
        row = {"clip": clip.name, "caption": clip.caption, "seconds": clip.seconds}
        for measure in measures:
            seen = measure.observe(clip)
            if seen is not None:
                observed[measure.name].append(seen)
                row[measure.name] = measure.of_clip(seen)
        table.append(row)
    rows = [_row(measure, observed[measure.name]) for measure in measures]
    return Measured(rows, table, skipped)


def _row(measure: Measure, seen: list[Any]) -> Row:
    if len(seen) < measure.least:
        clips = "clip" if measure.least == 1 else "clips"
        why = f"needs {measure.least} {clips} in which it can be measured, found {len(seen)}"
        return Row(measure, None, why)
    low, high = measure.interval(seen) or (None, None)
    return Row(measure, Figure(float(measure.value(seen)), low, high, len(seen)))
