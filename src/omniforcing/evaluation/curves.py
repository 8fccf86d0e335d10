"""Training curves of the trained stages over reference curves, so that a run's health is seen at once."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omniforcing.evaluation.plots import REFERENCE, new_figure, save_figure

# Below it, for each preset, the curves of a run that went well; ``benchmarks/curves.py`` keeps them.
REFERENCES = Path("docs", "curves")
# Title -> the columns that it draws; a stage without one of them leaves it out.
PANELS = {
    "loss": ("loss_video", "loss_audio"),
    "critic loss": ("critic_loss_video", "critic_loss_audio"),
    "gradient norm": ("gradient_norm_video", "gradient_norm_audio"),
    "sync margin of samples": ("sync_margin",),
}
COLOURS = ("#30638e", "#edae49")
SMOOTHED = 5  # logged values per point of a curve: single batches are noisy
Curves = Mapping[str, list[tuple[int, float]]]


def read_curves(path: Path) -> Curves:
    """Column -> (step, value) where there is one, of a stage's ``curves.csv``; empty if there is no such file."""
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
    """The curves below ``folder`` of those stages that left any."""
    found = {stage: read_curves(folder / f"{stage}.curves.csv") for stage in stages}
    return {stage: curves for stage, curves in found.items() if curves}


def draw_training(
    path: Path, stages: Mapping[str, Curves], references: Mapping[str, Curves]
) -> Path:
    """A row per stage, a column per panel: this run in colour, the reference in grey; returns ``path``."""
    figure, axes = new_figure(
        len(stages), len(PANELS), width=12, height=1.9 * len(stages), squeeze=False
    )
    for row, (stage, curves) in zip(axes, stages.items(), strict=True):
        for axis, (title, columns) in zip(row, PANELS.items(), strict=True):
            for column, colour in zip(columns, COLOURS, strict=False):
                _line(axis, references.get(stage, {}).get(column, []), color=REFERENCE, lw=3)
                _line(
                    axis,
                    curves.get(column, []),
                    color=colour,
                    lw=1.2,
                    label=column.rpartition("_")[2],
                )
            axis.set_title(title, fontsize=8)
            axis.tick_params(labelsize=7)
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
            axis.set_visible(axis.has_data())
        row[0].set_ylabel(stage.replace("_", "\n", 1), fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("update; grey: the reference run", fontsize=9)
    return save_figure(figure, path)


def _line(axis: Any, points: list[tuple[int, float]], **style: Any) -> None:
    if not points:
        return
    size = SMOOTHED if len(points) > 2 * SMOOTHED else 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [[sum(each) / len(group) for each in zip(*group, strict=True)] for group in groups]
    axis.plot(*zip(*means, strict=True), marker="o" if size == 1 else None, ms=3, **style)
