"""Figures of several sets of clips next to each other, and a table of all their clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omniforcing.evaluation.measures.base import (
    Figure,
    Measure,
    Observed,
    Row,
    figures_of,
    resampled_interval,
)

REAL, TEACHER = "real", "teacher"  # the sets that all others are compared with
INPUTS = ("set", "clip", "caption", "seconds")  # columns of a table of clips that are no figures


@dataclass(frozen=True)
class MeasuredSets:
    """Measures of several sets of clips, as they are written.

    Attributes:
        protocols: for each measure, its ``id``, ``protocol`` and ``unit``, and the ``licence`` of
            its weights.
        figures: for each set and measure, ``value``, ``low``, ``high``, ``n``, protocol ``id``,
            and the ratios ``to_real`` and ``to_teacher`` where they say something; or ``why``
            there is no figure.
        clips: for each set, name, caption, seconds and figures of each clip, and what else an
            evaluation knows of it.
    """

    protocols: dict[str, dict[str, str]]
    figures: dict[str, dict[str, dict[str, Any]]]
    clips: dict[str, list[dict[str, Any]]]

    def clip_table(self, videos: Mapping[tuple[str, str], str]) -> dict[str, Any]:
        """Return a table of all clips, in the form that MLflow shows.

        Args:
            videos: the file of each set and clip that was kept.
        """
        columns = [*INPUTS, *self.protocols]
        for clips in self.clips.values():
            for clip in clips:
                columns += [key for key in clip if key not in columns]
        columns.append("video")
        data = []
        for name, clips in self.clips.items():
            for clip in clips:
                row = {**clip, "set": name, "video": videos.get((name, clip["clip"]))}
                data.append([row.get(column) for column in columns])
        return {"columns": columns, "data": data}


def clip_records(table: Mapping[str, Any], artifacts: str) -> list[dict[str, Any]]:
    """Turn a table of clips into records of an evaluation dataset.

    Args:
        table: ``columns`` and ``data``, as ``clip_table`` returns them.
        artifacts: URI of the folder in which the videos lie that the table names.

    Returns:
        For each clip its ``inputs`` (set, clip, caption, seconds) and ``expectations``: its
        figures, and the URI of its video where that was kept. MLflow's pages show no other part of
        a record.
    """
    records = []
    for values in table["data"]:
        row = dict(zip(table["columns"], values, strict=True))
        inputs = {column: row.pop(column) for column in INPUTS}
        figures = {column: value for column, value in row.items() if value is not None}
        if row["video"]:
            figures["video"] = f"{artifacts}/{row['video']}"
        records.append({"inputs": inputs, "expectations": figures})
    return records


def measure_sets(observed: Mapping[str, Observed], measures: Sequence[Measure]) -> MeasuredSets:
    """Make the figures of sets of clips.

    Args:
        observed: the sets; ``real`` and ``teacher`` are what the others are compared with.
        measures: those that observed the clips.
    """
    real = observed.get(REAL)
    measured = {name: figures_of(clips, measures, real) for name, clips in observed.items()}
    references = {name: measured[name].rows for name in (REAL, TEACHER) if name in measured}
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in measured.items():
        figures[name] = {}
        for index, row in enumerate(found.rows):
            others = {key: rows[index] for key, rows in references.items() if key != name}
            figures[name][row.measure.name] = figure_of(row, others)
    return MeasuredSets(
        {measure.name: about(measure) for measure in measures},
        figures,
        {name: found.clips for name, found in measured.items()},
    )


def about(measure: Measure) -> dict[str, str]:
    """Say how a measure is taken, and whose weights it needs."""
    found = {"id": measure.protocol_id, "protocol": measure.protocol, "unit": measure.unit}
    return found | ({"licence": measure.licence} if measure.licence else {})


def figure_of(row: Row, others: Mapping[str, Row]) -> dict[str, Any]:
    """A figure with its protocol and its ratios to other sets, as it is written."""
    if row.figure is None:
        return {"id": row.measure.protocol_id, "why": row.why}
    ratios = {f"to_{name}": row.ratio(other) for name, other in others.items()}
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    figure = vars(row.figure)
    if row.figure.floor is None:
        figure = {key: value for key, value in figure.items() if key != "floor"}
    return {"id": row.measure.protocol_id, **figure, **known}


def paired_difference(
    name: str, clips: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> Figure | None:
    """Mean difference of a measure between clips of the same name and caption.

    Pairs made of the same caption and seed differ far less than clips do, so it tells small
    differences from chance that the intervals of both sets cannot.

    Args:
        name: name of the measure.
        clips: rows with ``clip``, ``caption`` and figures.
        others: the other clips' rows.

    Returns:
        The first less the others, with its interval over pairs; None with fewer than two pairs.
    """
    known = {(row["clip"], row["caption"]): row.get(name) for row in others}
    differences = []
    for row in clips:
        mine, theirs = row.get(name), known.get((row["clip"], row["caption"]))
        if mine is not None and theirs is not None:
            differences.append(mine - theirs)
    if len(differences) < 2:
        return None
    low, high = resampled_interval(differences, lambda drawn: float(np.mean(drawn)))
    return Figure(float(np.mean(differences)), low, high, len(differences))
