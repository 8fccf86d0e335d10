"""What a measure is: it observes each clip once, and makes one figure of all observations.

Observations are numbers, lists or arrays of them: they are kept as JSON (``Observed``), so that
figures can be made later, next to those of other clips.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from omniforcing.core.files import read_json, write_json
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
        floor: of a distance, what sampling alone amounts to.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    floor: float | None = None


class Measure(ABC):
    """Base of all measures.

    Attributes:
        name: name of the figure; one that uses an encoder names it.
        unit: its unit, empty for a plain number.
        protocol: how it is taken (rates, windows, tolerances); figures of different protocols must
            not be compared.
        least: clips that it needs at least.
        asks: what a clip must have to be measured.
        has_ratio: whether a ratio of two of its figures says something; not of decibels, nor of
            what may be negative.
        needs_reference: whether it compares with other clips.
        licence: of its published weights; empty for a measure that needs none.
        missing: why it cannot be taken, such as weights that are not there; empty if it can.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    protocol: str
    least: ClassVar[int] = 1
    asks: ClassVar[str] = ""
    has_ratio: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    licence: ClassVar[str] = ""
    missing: str = ""

    @property
    def protocol_id(self) -> str:
        """Short digest of name and protocol: figures with the same one may be compared."""
        return hashlib.sha256(f"{self.name}: {self.protocol}".encode()).hexdigest()[:8]

    @abstractmethod
    def observe(self, clip: Clip) -> Any:
        """Take what the figure needs from a clip; None where the clip has nothing to measure."""

    @abstractmethod
    def value(self, seen: Sequence[Any]) -> float:
        """Make the figure of the observations of at least ``least`` clips."""

    def lacking(self, seen: Sequence[Any]) -> str:
        """Say why enough observations make no figure all the same; empty if they make one."""
        del seen
        return ""

    def of_clip(self, seen: Any) -> float | None:
        """The figure of one clip; None for a measure of sets."""
        return self.value([seen]) if self.least == 1 else None

    def figure(self, seen: Sequence[Any], reference: Sequence[Any]) -> Figure:
        """The figure of at least ``least`` clips; ``reference`` is for a measure that needs it."""
        del reference
        low, high = self.interval(seen) or (None, None)
        return Figure(float(self.value(seen)), low, high, len(seen))

    def interval(self, seen: Sequence[Any]) -> tuple[float, float] | None:
        """Interval of 95 % over which clips were drawn, by resampling them."""
        return resampled_interval(seen, self.value) if len(seen) > 1 else None


def resampled_interval(
    seen: Sequence[Any], value: Callable[[Sequence[Any]], float]
) -> tuple[float, float]:
    """Interval of 95 % of a figure over which observations were drawn (bootstrap)."""
    generator = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(seen), len(seen))
        values.append(value([seen[index] for index in drawn]))
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

    def ratio(self, other: Row | None) -> float | None:
        """The figure over that of other clips; None where that says nothing."""
        if not self.measure.has_ratio or other is None:
            return None
        if self.figure is None or other.figure is None or other.figure.value <= 0:
            return None
        return self.figure.value / other.figure.value if self.figure.value >= 0 else None


@dataclass
class Observed:
    """What measures took from a set of clips.

    Attributes:
        clips: name, caption and seconds of each clip.
        seen: for each measure, what it took from each clip; None where there was nothing.
        failed: for a measure whose encoder failed on a clip, where and how.
        skipped: files that could not be measured.
    """

    clips: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[str, list[Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, clip: Clip, measures: Sequence[Measure]) -> None:
        """Observe a clip."""
        self.clips.append({"clip": clip.name, "caption": clip.caption, "seconds": clip.seconds})
        for measure in measures:
            if measure.missing or measure.name in self.failed:
                continue
            try:
                seen = measure.observe(clip)
            except Exception as error:
                if not measure.licence:
                    raise  # a fault of ours; weights and programs are the user's
                why = f"its encoder failed on clip {clip.name}: {_end_of(error)}"
                self.failed[measure.name] = why
                continue
            if _is_finite(seen):
                self.seen.setdefault(measure.name, []).append(seen)
            else:
                self.failed[measure.name] = f"what it made of clip {clip.name} is not finite"

    def save(self, path: Path) -> None:
        """Write it as JSON; arrays become lists."""
        seen = {name: [_plain(value) for value in row] for name, row in self.seen.items()}
        write_json(path, {"clips": self.clips, "seen": seen, "failed": self.failed})

    @classmethod
    def load(cls, path: Path) -> Observed:
        """Read what ``save`` wrote.

        Raises:
            OmniForcingError: if the file is missing or damaged.
        """
        content = read_json(path)
        return cls(content["clips"], content["seen"], content["failed"])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


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
    return figures_of(observe_clips(clips, measures), measures)


def observe_clips(clips: Iterable[Clip | Skipped], measures: Sequence[Measure]) -> Observed:
    """Let measures take what they need from clips; arguments as of ``measure_clips``."""
    observed = Observed()
    for clip in clips:
        if isinstance(clip, Skipped):
            observed.skipped.append(clip)
        else:
            observed.add(clip, measures)
    return observed


def figures_of(
    observed: Observed, measures: Sequence[Measure], reference: Observed | None = None
) -> Measured:
    """Make the figures of observed clips, of the set and of each clip.

    Args:
        observed: the clips.
        measures: those that observed them.
        reference: other clips, for the measures that need them.
    """
    rows = []
    table = [dict(clip) for clip in observed.clips]
    for measure in measures:
        if measure.name in observed.failed:
            rows.append(Row(measure, None, observed.failed[measure.name]))
            continue
        kept = []
        for row, seen in zip(table, observed.seen.get(measure.name, ()), strict=False):
            if seen is not None:
                kept.append(seen)
                row[measure.name] = measure.of_clip(seen)
        if reference and measure.needs_reference and measure.name in reference.failed:
            why = f"of the clips to compare with: {reference.failed[measure.name]}"
            rows.append(Row(measure, None, why))
            continue
        others = reference.seen.get(measure.name, []) if reference else []
        rows.append(_row(measure, kept, [seen for seen in others if seen is not None]))
    return Measured(rows, table, observed.skipped)


def _row(measure: Measure, seen: list[Any], reference: list[Any]) -> Row:
    if measure.missing:
        return Row(measure, None, measure.missing)
    if len(seen) < measure.least:
        clips = "clip" if measure.least == 1 else "clips"
        asked = f" {measure.asks}" if measure.asks else ""
        why = f"needs {measure.least} {clips}{asked}, found {len(seen)}"
        return Row(measure, None, why)
    if measure.needs_reference and len(reference) < measure.least:
        why = f"needs {measure.least} clips to compare with, found {len(reference)}"
        return Row(measure, None, why)
    lacking = measure.lacking(seen)
    if lacking:
        return Row(measure, None, lacking)
    try:
        figure = measure.figure(seen, reference)
    except Exception as error:
        if not measure.licence:
            raise
        return Row(measure, None, f"what its encoder gave makes no figure: {_end_of(error)}")
    return Row(measure, figure) if _is_finite(figure.value) else Row(measure, None, "is not finite")


def _is_finite(seen: Any) -> bool:
    """Whether all numbers of an observation are finite."""
    if isinstance(seen, list | tuple):
        return all(map(_is_finite, seen))
    return seen is None or bool(np.isfinite(seen).all())


def _end_of(error: Exception) -> str:
    """The end of what an error says, where programs name their own reason, on one line."""
    return " ".join(str(error).split())[-120:]
