"""Plot training curves of all stages over those of a reference run, to see a run's health."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omniforcing.evaluation.plots import REFERENCE, new_figure, save_figure

# Folder that holds, for each preset, the curves of a run that went well;
# ``benchmarks/curves.py`` writes them.
REFERENCES = Path("docs", "curves")
# Title of a panel -> columns of the curves that it draws, where a stage has them.
PANELS = {
    "loss": ("loss_video", "loss_audio"),
    "critic loss": ("critic_loss_video", "critic_loss_audio"),
    "gradient norm": ("gradient_norm_video", "gradient_norm_audio"),
    "sync margin of samples": ("sync_margin",),
}
COLOURS = ("#30638e", "#edae49")
SMOOTHED = 5  # logged values averaged for a point of a curve: single batches are noisy
Curves = Mapping[str, list[tuple[int, float]]]


def read_curves(path: Path) -> Curves:
    """Read a stage's ``curves.csv``.

    Returns:
        Column -> (step, value) of the rows that have a value; empty if there is no such file.
    """
    if not path.is_file():
        return {}
    curves: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves


def stage_curves(folder: Path, stages: Iterable[str]) -> dict[str, Curves]:
    """Read the curves below ``folder`` of the stages that left any."""
    every = {stage: read_curves(folder / f"{stage}.curves.csv") for stage in stages}
    return {stage: curves for stage, curves in every.items() if curves}


def draw_training(
    path: Path, stages: Mapping[str, Curves], references: Mapping[str, Curves]
) -> Path:
    """Draw a row per stage and a column per panel: this run in colour, the reference in grey.

    Args:
        path: picture to write.
        stages: curves of each stage of this run.
        references: curves of each stage of the reference run.

    Returns:
        ``path``.
    """
    figure, axes = new_figure(
        len(stages), len(PANELS), width=12, height=1.9 * len(stages), squeeze=False
    )
    for row, (stage, curves) in zip(axes, stages.items(), strict=True):
        for axis, (title, columns) in zip(row, PANELS.items(), strict=True):
            for column, colour in zip(columns, COLOURS, strict=False):
                reference, label = references.get(stage, {}), column.rpartition("_")[2]
                _line(axis, reference.get(column, []), color=REFERENCE, lw=3)
                _line(axis, curves.get(column, []), color=colour, lw=1.2, label=label)
            axis.set_title(title, fontsize=8)
            axis.tick_params(labelsize=7)
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
            axis.set_visible(axis.has_data())
        row[0].set_ylabel(stage.replace("_", "\n", 1), fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("update; grey: the reference run", fontsize=9)
    return save_figure(figure, path)


def _line(axis: Any, points: list[tuple[int, float]], **style: Any) -> None:
    """Draw the means of groups of points."""
    if not points:
        return
    size = SMOOTHED if len(points) > 2 * SMOOTHED else 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = []
    for group in groups:
        steps, values = zip(*group, strict=True)
        means.append((sum(steps) / len(group), sum(values) / len(group)))
    axis.plot(*zip(*means, strict=True), marker="o" if size == 1 else None, ms=3, **style)
