"""Rows of the result: their states, their JSON file and their Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, write_json

SCHEMA = 1
OK, WRONG, SKIPPED = "ok", "wrong", "skipped"
MISSING, FAILED, STOPPED = "missing", "failed", "stopped"
FINAL = (OK, WRONG, SKIPPED)  # states of rows that a later run does not measure again
Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One measurement's outcome.

    Attributes:
        part: name of its part.
        name: of the measurement, unique within the part.
        state: ``ok`` (has figures), ``wrong`` (figures beyond their bound), ``skipped`` (needs a
            card), ``missing`` (needs a package), ``failed`` (an error, a crash or a hang) or
            ``stopped`` (out of time).
        figures: measured values by name; units stand in the names.
        why: one sentence, for every state but ``ok``; a remark there.
        seconds: length of the measurement.
    """

    part: str
    name: str
    state: str
    figures: Figures = field(default_factory=dict)
    why: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        words = [f"{self.part:<9}{self.name:<26}{self.state:<8}"]
        for name, value in self.figures.items():
            if value is not None:
                words.append(f"{name} {show(value)}")
        if self.why:
            words.append(self.why)
        return "  ".join(words)


class OutOfBounds(Exception):
    """Figures beyond their bound: a fault of the device path, not of the measurement.

    Args:
        figures: what was measured.
        why: one sentence that names the bound.
    """

    def __init__(self, figures: Figures, why: str) -> None:
        super().__init__(why)
        self.figures = figures


@dataclass(frozen=True)
class Measurement:
    """One row to measure.

    Attributes:
        name: of the row.
        run: measures and returns the figures; raises ``OutOfBounds``.
        does: completes "would ...", for the row of a machine that cannot run it.
        cuda: whether it needs a CUDA device.
        packages: packages that it needs beyond torch, transformers, safetensors and numpy.
        limit: seconds after which it counts as hanging; None: the rest of the part's time.
    """

    name: str
    run: Callable[[], Figures]
    does: str
    cuda: bool = False
    packages: tuple[str, ...] = ("diffusers",)
    limit: float | None = None


class Results:
    """The rows of a run, printed as they come and kept in a JSON file that is always complete.

    Args:
        about: identifies the run; an existing file's rows are kept if it states the same.
        path: the file; None: rows stay in memory alone.

    Raises:
        OmniForcingError: if the file holds another run or something else, or its folder is missing.
    """

    def __init__(self, about: dict[str, Any], path: Path | None = None) -> None:
        self.about, self.path = dict(about), path
        self.rows: list[Row] = []
        self.measurements: dict[str, list[str]] = {}  # names of each part's, once it has told them
        if path is None:
            return
        if not path.parent.is_dir():
            raise OmniForcingError(
                "file.no-folder",
                f"--json {path}: the folder {path.parent} does not exist; "
                "make it or name another file",
            )
        if path.is_dir():
            raise OmniForcingError("file.is-a-folder", f"--json {path} is a folder; name a file")
        if path.exists():
            self._resume(read_json(path))

    def _resume(self, stored: Any) -> None:
        """Take the final rows of an earlier run with the same settings on the same code."""
        complete = isinstance(stored, dict) and {"about", "rows"} <= stored.keys()
        if not complete or stored.get("schema") != SCHEMA:
            raise OmniForcingError(
                "file.unknown-schema",
                f"--json {self.path} exists and holds no results of schema {SCHEMA}; "
                "name another file",
            )
        for key, value in self.about.items():
            other = stored["about"].get(key)
            if other != value:
                raise OmniForcingError(
                    "benchmarks.another-run",
                    f"--json {self.path} holds another run: its {key} is {other!r}, "
                    f"this one's is {value!r}; name another file, or remove that one",
                )
        self.about = stored["about"]
        self.measurements = stored.get("measurements", {})
        for values in stored["rows"]:
            row = Row(**values)
            if row.state in FINAL:
                self.rows.append(row)

    def done(self, part: str) -> set[str]:
        """Return the names of a part's measurements that need not run again."""
        return {row.name for row in self.rows if row.part == part and row.state in FINAL}

    def complete(self, part: str) -> bool:
        """Return whether each of a part's measurements has a final row."""
        return part in self.measurements and self.done(part).issuperset(self.measurements[part])

    def add(self, row: Row) -> None:
        """Print a row and write the file."""
        figures = {name: to_json_value(value) for name, value in row.figures.items()}
        row = replace(row, figures=figures)
        print(row, flush=True)
        self.rows.append(row)
        self.save()

    def note(self, **values: Any) -> None:
        """Add facts about the run and write the file."""
        self.about |= values
        self.save()

    def save(self) -> None:
        """Write the file atomically.

        Raises:
            OmniForcingError: if it cannot be written.
        """
        if self.path is None:
            return
        stored = {
            "schema": SCHEMA,
            "about": self.about,
            "measurements": self.measurements,
            "rows": [asdict(row) for row in self.rows],
        }
        try:
            write_json(self.path, stored)
        except OSError as error:
            reason = error.strerror or error
            raise OmniForcingError(
                "file.cannot-write",
                f"--json {self.path} cannot be written ({reason}); name another file",
            ) from error

    @property
    def measured(self) -> bool:
        """Whether any part gave a figure."""
        return any(row.figures for row in self.rows)


def to_json_value(value: Any) -> Any:
    """Turn NaN and infinities, which JSON lacks, into words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def show(value: Any) -> str:
    """Format a figure: three significant digits; whole numbers and words as they are."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(results: Results, titles: dict[str, str]) -> str:
    """Write a run as Markdown: facts about it, then a table per part.

    Args:
        results: the run.
        titles: heading of each part, by its name.
    """
    facts = []
    for key, value in results.about.items():
        if value is not None:
            facts.append(f"- {key.replace('_', ' ')}: {show(value)}")
    sections = ["\n".join(facts)]
    for part, title in titles.items():
        rows = [row for row in results.rows if row.part == part]
        if rows:
            sections.append(f"### {title}\n\n{table(rows)}")
    return "\n\n".join(sections)


def table(rows: Iterable[Row]) -> str:
    """Write a part's rows: a table for each set of figures, then a line for each row without any.

    Rows whose first figure has the same name share a table.
    """
    tables: dict[str, list[Row]] = {}
    lines = []
    for row in rows:
        if row.figures:
            tables.setdefault(next(iter(row.figures)), []).append(row)
        else:
            lines.append(f"- {row.name}: {row.state}, {row.why}")
    blocks = [_grid(group) for group in tables.values()]
    if lines:
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _grid(rows: list[Row]) -> str:
    """Write a table with a column per figure, and a last one if any row has a remark."""
    names: dict[str, None] = {}  # an ordered set
    for row in rows:
        names |= {name: None for name, value in row.figures.items() if value is not None}
    remarks = any(row.why for row in rows)
    head = ["", *names, *(["remark"] if remarks else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.name]
        for name in names:
            value = row.figures.get(name)
            cells.append("" if value is None else show(value))
        if remarks:
            cells.append(row.why if row.state == OK else f"**{row.state}**: {row.why}")
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join(escaped) + " |")
    return "\n".join(lines)
