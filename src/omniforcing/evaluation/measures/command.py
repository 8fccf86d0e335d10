"""``omniforcing measure``: measure clips, next to others if wished."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.files import write_json
from omniforcing.evaluation.measures.base import (
    Measure,
    Measured,
    Observed,
    Row,
    figures_of,
    observe_clips,
)
from omniforcing.evaluation.measures.clips import Clip, Skipped, read_clips
from omniforcing.evaluation.measures.tables import about, figure_of, paired_difference

SCHEMA = 1
HEADS = ("measure", "value", "95 % interval", "clips", "against", "ratio", "paired difference")
WIDTHS = (30, 12, 20, 6, 12, 8, 28)


@dataclass(frozen=True)
class Source:
    """Clips to measure.

    Attributes:
        name: what the table calls them.
        clips: the clips.
    """

    name: str
    clips: Iterable[Clip | Skipped]

    @classmethod
    def of_folder(cls, folder: Path, most: int | None = None) -> Source:
        """The clips of a folder; arguments as of ``read_clips``."""
        return cls(str(folder), read_clips(folder, most))


def measure_sources(
    source: Source,
    measures: Sequence[Measure],
    against: Source | None = None,
    json_file: Path | None = None,
) -> str:
    """Measure clips.

    Args:
        source: the clips.
        measures: what to measure.
        against: other clips, such as real ones, whose figures stand next to those. Clips of the
            same name are pairs, whose differences stand there too.
        json_file: where to write all figures, those of each clip too.

    Returns:
        The table, as text.

    Raises:
        OmniForcingError: if a source holds no clip, or the file cannot be written.
    """
    reference = _observed(against, measures) if against else None
    other = figures_of(reference, measures) if reference else None
    measured = figures_of(_observed(source, measures), measures, reference)
    if json_file is not None:
        content = {"schema": SCHEMA, "source": _content(source, measured)}
        if against and other:
            content["against"] = _content(against, other)
        write_json(json_file, content)
    return _table(source, measured, against, other)


def _observed(source: Source, measures: Sequence[Measure]) -> Observed:
    from tqdm import tqdm

    label = Path(source.name).name
    clips = tqdm(source.clips, label, unit="clip", disable=None, file=sys.stderr)
    return observe_clips(clips, measures)


def _content(source: Source, measured: Measured) -> dict[str, Any]:
    figures = {row.measure.name: about(row.measure) | figure_of(row, {}) for row in measured.rows}
    skipped = [vars(file) for file in measured.skipped]
    return {
        "folder": source.name,
        "figures": figures,
        "clips": measured.clips,
        "skipped": skipped,
    }


def _table(
    source: Source, measured: Measured, against: Source | None, other: Measured | None
) -> str:
    columns = len(HEADS) if other else len(HEADS) - 3
    lines = [f"{source.name}: {len(measured.clips)} clips"]
    if against and other:
        lines[0] += f"; against {against.name}: {len(other.clips)} clips"
    lines += ["", _line(HEADS[:columns])]
    for index, row in enumerate(measured.rows):
        cells = _cells(row)
        if other and row.figure:
            cells += [*_beside(row, other.rows[index]), _difference(row, measured, other)]
        lines.append(_line(cells) if row.figure else f"{cells[0]:<{WIDTHS[0]}}  {row.why}")
    if against and other:
        missing = [row for row in other.rows if row.figure is None]
        lines += ["", f"not known of {against.name}:"] if missing else []
        lines += [f"  {row.measure.name}: {row.why}" for row in missing]
    lines += ["", "how each is taken:"]
    lines += [f"  {row.measure.name}: {_taken(row.measure)}" for row in measured.rows]
    for found in (measured, other):
        if found and found.skipped:
            lines += ["", f"not measured: {len(found.skipped)}"]
            lines += [f"  {file.name}: {file.why}" for file in found.skipped]
    return "\n".join(lines)


def _taken(measure: Measure) -> str:
    licence = f" (licence of the weights: {measure.licence})" if measure.licence else ""
    return measure.protocol + licence


def _line(cells: Sequence[str]) -> str:
    first, *rest = cells
    padded = [f"{cell:>{width}}" for cell, width in zip(rest, WIDTHS[1:], strict=False)]
    return "  ".join([f"{first:<{WIDTHS[0]}}", *padded]).rstrip()


def _cells(row: Row) -> list[str]:
    if row.figure is None:
        return [row.measure.name]
    figure, unit = row.figure, row.measure.unit
    between = _interval(figure.low, figure.high)
    if figure.floor is not None and not between:
        between = f"sampling {_number(figure.floor)}"
    value = f"{_number(figure.value)} {unit.split()[0]}" if unit else _number(figure.value)
    return [row.measure.name, value, between, str(figure.n)]


def _beside(row: Row, other: Row) -> list[str]:
    """The other clips' figure, and the ratio where both have a meaning as one."""
    if other.figure is None:
        return ["-", ""]
    ratio = row.ratio(other)
    return [_number(other.figure.value), "" if ratio is None else f"{ratio:.2f}"]


def _difference(row: Row, measured: Measured, other: Measured) -> str:
    figure = paired_difference(row.measure.name, measured.clips, other.clips)
    if figure is None:
        return ""
    return f"{_number(figure.value)} ({_interval(figure.low, figure.high)})"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
