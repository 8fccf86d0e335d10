"""``omniforcing measure``: measure a folder of clips, next to another one if wished."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omniforcing.core.files import write_json
from omniforcing.evaluation.measures.base import Measure, Measured, Row, measure_clips
from omniforcing.evaluation.measures.clips import read_clips
from omniforcing.evaluation.measures.registry import chosen_measures
from omniforcing.evaluation.measures.tables import about, figure_of

SCHEMA = 1
HEADS = ("measure", "value", "95 % interval", "clips", "against", "ratio")
WIDTHS = (22, 12, 20, 6, 12, 8)


def measure_folders(
    source: Path,
    against: Path | None = None,
    names: Sequence[str] = (),
    most: int | None = None,
    json_file: Path | None = None,
) -> str:
    """Measure the clips of a folder.

    Args:
        source: an output of stage shards, or a folder of videos.
        against: another folder, such as of real clips, whose figures stand next to those.
        names: measures to take; all if empty.
        most: clips of each folder after which to stop.
        json_file: where to write all figures, those of each clip too.

    Returns:
        The table, as text.

    Raises:
        OmniForcingError: for an unknown measure, a folder without clips, or a file that cannot be
            written.
    """
    measures = chosen_measures(names)
    measured = _measure(source, measures, most)
    other = _measure(against, measures, most) if against else None
    if json_file is not None:
        content = {"schema": SCHEMA, "source": _content(source, measured)}
        if against and other:
            content["against"] = _content(against, other)
        write_json(json_file, content)
    return _table(source, measured, against, other)


def _measure(folder: Path, measures: Sequence[Measure], most: int | None) -> Measured:
    from tqdm import tqdm

    clips = tqdm(read_clips(folder, most), folder.name, unit="clip", disable=None, file=sys.stderr)
    return measure_clips(clips, measures)


def _content(folder: Path, measured: Measured) -> dict[str, Any]:
    figures = {row.measure.name: about(row.measure) | figure_of(row, {}) for row in measured.rows}
    skipped = [vars(file) for file in measured.skipped]
    return {"folder": str(folder), "figures": figures, "clips": measured.clips, "skipped": skipped}


def _table(source: Path, measured: Measured, against: Path | None, other: Measured | None) -> str:
    columns = len(HEADS) if other else len(HEADS) - 2
    lines = [f"{source}: {len(measured.clips)} clips"]
    if against and other:
        lines[0] += f"; against {against}: {len(other.clips)} clips"
    lines += ["", _line(HEADS[:columns])]
    for index, row in enumerate(measured.rows):
        cells = _cells(row)
        if other and row.figure:
            cells += _beside(row, other.rows[index])
        lines.append(_line(cells) if row.figure else f"{cells[0]:<{WIDTHS[0]}}  {row.why}")
    lines += ["", "how each is taken:"]
    lines += [f"  {row.measure.name}: {row.measure.protocol}" for row in measured.rows]
    for found in (measured, other):
        if found and found.skipped:
            lines += ["", f"not measured: {len(found.skipped)}"]
            lines += [f"  {file.name}: {file.why}" for file in found.skipped]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    first, *rest = cells
    padded = [f"{cell:>{width}}" for cell, width in zip(rest, WIDTHS[1:], strict=False)]
    return "  ".join([f"{first:<{WIDTHS[0]}}", *padded]).rstrip()


def _cells(row: Row) -> list[str]:
    if row.figure is None:
        return [row.measure.name]
    figure, unit = row.figure, row.measure.unit
    value = f"{_number(figure.value)} {unit.split()[0]}" if unit else _number(figure.value)
    between = ""
    if figure.low is not None and figure.high is not None:
        between = f"{_number(figure.low)} to {_number(figure.high)}"
    return [row.measure.name, value, between, str(figure.n)]


def _beside(row: Row, other: Row) -> list[str]:
    """The other folder's figure, and the ratio where both have a meaning as one."""
    if other.figure is None:
        return ["-"]
    ratio = row.ratio(other)
    return [_number(other.figure.value), "" if ratio is None else f"{ratio:.2f}"]


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
