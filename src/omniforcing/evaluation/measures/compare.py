"""``omniforcing compare``: two evaluations next to each other, clip by clip.

Clips of the same model, number and caption are pairs: they were made with the same seed if both
evaluations have the same. Differences of pairs have far narrower intervals than those of sets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_write, read_json_object
from omniforcing.evaluation.measures.base import Figure, resampled_interval
from omniforcing.evaluation.measures.tables import INPUTS, paired_difference
from omniforcing.evaluation.report import COLUMNS, format_number, render_template
from omniforcing.evaluation.summary import CLIP_TABLE

SHOWN = 4  # pairs of clips of each model on the page
_SYNC = ("sync_margin", "sync_f1")  # pooled over clips
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Evaluated:
    """A published evaluation.

    Attributes:
        folder: output of stage evaluate.
        metrics: content of its ``metrics.json``.
        clips: rows of its ``clips.json``, by model.
    """

    folder: Path
    metrics: dict[str, Any]
    clips: dict[str, Rows]

    @classmethod
    def open(cls, folder: Path) -> Evaluated:
        """Read an evaluation.

        Raises:
            OmniForcingError: if the folder holds none, or one without a table of clips.
        """
        table_file = folder / CLIP_TABLE
        if not table_file.is_file():
            raise OmniForcingError(
                "evaluation.no-clip-table",
                f"{folder} has no {CLIP_TABLE}; give the output of stage evaluate, and run the "
                "stage again if an older version wrote it",
            )
        metrics, table = read_json_object(folder / "metrics.json"), read_json_object(table_file)
        if not isinstance(metrics.get("models"), dict):
            raise _damaged(folder / "metrics.json", "it has no models")
        clips: dict[str, Rows] = {name: [] for name in metrics["models"]}
        try:
            for values in table["data"]:
                row = dict(zip(table["columns"], values, strict=True))
                missing = [column for column in (*INPUTS, "video") if column not in row]
                if missing:
                    raise _damaged(table_file, f"it has no column {missing[0]}")
                clips.setdefault(row["set"], []).append(row)
        except (KeyError, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            raise _damaged(table_file, f"it is no table of columns and data ({said})") from error
        return cls(folder, metrics, clips)


def _damaged(file: Path, what: str) -> OmniForcingError:
    return OmniForcingError(
        "file.damaged", f"{file} is not as stage evaluate writes it: {what}; run the stage again"
    )


def compare(first: Path, second: Path, out: Path) -> dict[str, Any]:
    """Write a page that compares two evaluations; it plays the clips where they lie.

    Args:
        first: output of stage evaluate.
        second: another one, from which the differences are counted.
        out: HTML file to write.

    Returns:
        What the page shows: for each model that both have, ``figures`` (both and their
        difference) and ``paired`` (differences over pairs of clips with intervals).

    Raises:
        OmniForcingError: if one is no evaluation, or they have no model in common.
    """
    mine, theirs = Evaluated.open(first), Evaluated.open(second)
    common = [name for name in mine.metrics["models"] if name in theirs.metrics["models"]]
    if not common:
        raise OmniForcingError(
            "evaluation.nothing-in-common",
            f"{first} and {second} have no model in common; compare evaluations of one pipeline",
        )
    models = {name: _compared(name, mine, theirs) for name in common}
    page = render_template(
        "compare.html",
        first=str(first),
        second=str(second),
        models=models,
        clips={name: _clips(name, mine, theirs, out) for name in common},
        number=format_number,
    )
    atomic_write(out, page.encode())
    return models


def _compared(name: str, mine: Evaluated, theirs: Evaluated) -> dict[str, Any]:
    figures, paired = {}, {}
    rows = mine.metrics["models"][name], theirs.metrics["models"][name]
    for column in COLUMNS:
        values = [row.get(column) for row in rows]
        if None not in values:
            figures[column] = _figure(column, *rows)
    for metric in _SYNC:
        sync = paired_sync(metric, mine.clips[name], theirs.clips[name])
        if sync:
            paired[metric] = vars(sync)
    known = mine.metrics.get("protocols", {}), theirs.metrics.get("protocols", {})
    for measure, about in known[0].items():
        if measure not in known[1]:
            continue
        if about["id"] != known[1][measure]["id"]:
            paired[measure] = {"why": "of different protocols"}
            continue
        found = paired_difference(measure, mine.clips[name], theirs.clips[name])
        if found:
            paired[measure] = {**vars(found), "unit": about["unit"]}
    return {"figures": figures, "paired": paired}


def paired_sync(
    metric: str, clips: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> Figure | None:
    """Difference of the pocket world's pooled sync between clips of the same name and caption.

    Args:
        metric: ``sync_f1`` or ``sync_margin``.
        clips: rows with ``clip``, ``caption`` and the clip's part of the sync.
        others: the other clips' rows.

    Returns:
        The first less the others, with its interval over pairs; None for another metric, with
        fewer than two pairs, or with rows of an older evaluation.
    """
    known = {(row["clip"], row["caption"]): row for row in others}
    pairs = []
    for row in clips:
        other = known.get((row["clip"], row["caption"]))
        if other and row.get("sync_hits") is not None and other.get("sync_hits") is not None:
            pairs.append((row, other))
    if metric not in _SYNC or len(pairs) < 2:
        return None

    def difference(drawn: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> float:
        first, second = zip(*drawn, strict=True)
        return _pooled(metric, first) - _pooled(metric, second)

    return Figure(difference(pairs), *resampled_interval(pairs, difference), len(pairs))


def _pooled(metric: str, rows: Sequence[Mapping[str, Any]]) -> float:
    events, hits = (sum(row[key] for row in rows) for key in ("sync_events", "sync_hits"))
    chance = sum(row["sync_chance"] for row in rows) if metric == "sync_margin" else 0.0
    return float((hits - chance) / events) if events else 0.0


def _figure(column: str, row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both values, their difference, and its standard error where both have one."""
    found = {"first": row[column], "second": other[column], "value": row[column] - other[column]}
    key = f"{column}_error"
    if key in row and key in other:
        found["error"] = (row[key] ** 2 + other[key] ** 2) ** 0.5
    return found


def _clips(name: str, mine: Evaluated, theirs: Evaluated, out: Path) -> list[dict[str, Any]]:
    """Pairs of clips that both pages show, with their measures."""
    others = {(row["clip"], row["caption"]): row for row in theirs.clips[name] if row["video"]}
    known = theirs.clips[name][0] if theirs.clips[name] else {}
    measures = [key for key in mine.metrics.get("protocols", {}) if key in known]
    pairs: list[dict[str, Any]] = []
    for row in mine.clips[name]:
        other = others.get((row["clip"], row["caption"]))
        if row["video"] and other and len(pairs) < SHOWN:
            scores = {key: (row[key], other[key]) for key in measures}
            videos = [_link(run, kept, out) for run, kept in ((mine, row), (theirs, other))]
            pairs.append({"caption": row["caption"], "videos": videos, "scores": scores})
    return pairs


def _link(evaluated: Evaluated, row: Mapping[str, Any], out: Path) -> str:
    """Path of a clip, from the page."""
    video = evaluated.folder.absolute() / row["video"]
    return Path(os.path.relpath(video, out.absolute().parent)).as_posix()
