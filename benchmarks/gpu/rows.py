"""Rows of the result: their states, the JSON file they are kept in, and the Markdown tables made of them."""

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
        part: the part it belongs to.
        name: of the measurement, unique within the part.
        state: ``ok`` (has figures), ``wrong`` (figures beyond their bound), ``skipped`` (needs a card),
            ``missing`` (needs a package), ``failed`` (an error, a crash or a hang) or ``stopped`` (out of time).
        figures: measured values by name; units stand in the names.
        why: one sentence, for every state but ``ok``; a remark there.
        seconds: how long the measurement took.
    """

    part: str
    name: str
    state: str
    figures: Figures = field(default_factory=dict)
    why: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        shown = "  ".join(
            f"{key} {show(value)}" for key, value in self.figures.items() if value is not None
        )
        return "  ".join(
            part
            for part in (f"{self.part:<9}{self.name:<26}{self.state:<8}", shown, self.why)
            if part
        )


class Wrong(Exception):
    """Figures that are beyond their bound: a fault of the device path, not of the measurement.

    Args:
        figures: what was measured.
        why: which bound it breaks, in one sentence.
    """

    def __init__(self, figures: Figures, why: str) -> None:
        super().__init__(why)
        self.figures = figures


@dataclass(frozen=True)
class Measurement:
    """One row to be made.

    Attributes:
        name: of the row.
        run: measures and returns the figures; raises ``Wrong`` for figures beyond their bound.
        does: what it does, for the row of a machine that cannot run it.
        cuda: whether it needs a CUDA device.
        packages: importable packages it needs beyond the first four.
        limit: seconds after which it counts as hanging; None: what is left of the part's time.
    """

    name: str
    run: Callable[[], Figures]
    does: str
    cuda: bool = False
    packages: tuple[str, ...] = ("diffusers",)
    limit: float | None = None


class Results:
    """The rows of a run, printed as they come and kept in a JSON file that is whole at any moment.

    Args:
        about: what identifies the run; rows in an existing file are kept if these are the same.
        path: the file; None keeps the rows in memory alone.

    Raises:
        OmniForcingError: if the file holds another run, or is none of ours.
    """

    def __init__(self, about: dict[str, Any], path: Path | None = None) -> None:
        self.about, self.path = dict(about), path
        self.rows: list[Row] = []
        if path is None:
            return
        if not path.parent.is_dir():
            raise OmniForcingError(
                "file.no-folder",
                f"--json {path}: the folder {path.parent} does not exist; make it or name another file",
            )
        if path.is_dir():
            raise OmniForcingError("file.is-a-folder", f"--json {path} is a folder; name a file")
        if path.exists():
            self._take(read_json(path))

    def _take(self, kept: Any) -> None:
        """Go on from what an earlier run with the same settings on the same code measured."""
        whole = isinstance(kept, dict) and {"about", "rows"} <= kept.keys()
        if not whole or kept.get("schema") != SCHEMA:
            raise OmniForcingError(
                "file.unknown-schema",
                f"--json {self.path} exists and holds no results of schema {SCHEMA}; name another file",
            )
        found = {key: kept["about"].get(key) for key in self.about}
        for key, value in self.about.items():
            if found[key] != value:
                raise OmniForcingError(
                    "benchmarks.another-run",
                    f"--json {self.path} holds another run: its {key} is {found[key]!r}, this one's is {value!r}; "
                    "name another file, or remove that one",
                )
        self.about = kept["about"]
        self.rows = [
            row for row in (Row(**values) for values in kept["rows"]) if row.state in FINAL
        ]

    def done(self, part: str) -> set[str]:
        """Names of a part's measurements that need not run again."""
        return {row.name for row in self.rows if row.part == part and row.state in FINAL}

    def add(self, row: Row) -> None:
        """Print a row and write the file."""
        row = replace(row, figures={name: finite(value) for name, value in row.figures.items()})
        print(row, flush=True)
        self.rows.append(row)
        self.save()

    def note(self, **values: Any) -> None:
        """Add to what is said about the run."""
        self.about |= values
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        rows = [asdict(row) for row in self.rows]
        try:
            write_json(self.path, {"schema": SCHEMA, "about": self.about, "rows": rows})
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


def finite(value: Any) -> Any:
    """A figure as JSON knows it: what is no finite number becomes a word."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def show(value: Any) -> str:
    """A figure in three significant digits; whole numbers and words as they are."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(results: Results, titles: dict[str, str]) -> str:
    """The run as Markdown: what it ran on, then a table per part with a column per figure."""
    about = "\n".join(
        f"- {key.replace('_', ' ')}: {show(value)}"
        for key, value in results.about.items()
        if value is not None
    )
    parts = [about]
    for part, title in titles.items():
        rows = [row for row in results.rows if row.part == part]
        if rows:
            parts.append(f"### {title}\n\n{table(rows)}")
    return "\n\n".join(parts)


def table(rows: Iterable[Row]) -> str:
    """Rows of one part in Markdown: a table for each kind of figures, then a line for each row that has none."""
    rows = list(rows)
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if row.figures:
            kinds.setdefault(next(iter(row.figures)), []).append(row)
    lines = [f"- {row.name}: {row.state}, {row.why}" for row in rows if not row.figures]
    return "\n\n".join([*map(_grid, kinds.values()), *(["\n".join(lines)] if lines else [])])


def _grid(rows: list[Row]) -> str:
    """A table with a column per figure, and one for remarks where there are any."""
    names = list(
        dict.fromkeys(
            name for row in rows for name, value in row.figures.items() if value is not None
        )
    )
    remarks = any(row.why for row in rows)
    head = ["", *names, *(["remark"] if remarks else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            show(value) if (value := row.figures.get(name)) is not None else "" for name in names
        ]
        why = [f"**{row.state}**: {row.why}" if row.state != OK else row.why] if remarks else []
        escaped = [cell.replace("|", "\\|") for cell in (row.name, *cells, *why)]
        lines.append("| " + " | ".join(escaped) + " |")
    return "\n".join(lines)
