"""What an evaluation leaves behind: ``metrics.json``, plots, and a page with the clips side by side, all links relative."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from omniforcing.files import write_json
from omniforcing.metrics.plots import REFERENCES, write_plots

SCHEMA = 1
COLUMNS = (
    *("sync_margin", "sync_margin_error", "sync_f1", "sync_f1_shuffled", "sync_offset_ms", "sync_offset_signed_ms"),
    *("events_video", "events_audio", "ball_present", "colour_accuracy", "pitch_accuracy"),
    *("frechet_video", "frechet_audio", "drift_margin", "clips"),
)


def write_report(
    folder: Path, metrics: Mapping[str, Any], offsets: Mapping[str, list[float]], shown: Mapping[str, str]
) -> None:
    """Write ``metrics.json``, ``plots/*.png`` and ``index.html`` into ``folder``.

    Args:
        folder: holds the shown media already, as ``clips/<model>/<index>.mp4`` and ``.png``.
        metrics: the content of ``metrics.json``.
        offsets: per model the offsets of its matched impacts in ms.
        shown: caption of each shown clip, by its index.
    """
    write_json(folder / "metrics.json", {"schema": SCHEMA, **metrics})
    (folder / "plots").mkdir()
    plots = write_plots(folder / "plots", metrics["models"], offsets, metrics["settings"]["tolerance_ms"])
    (folder / "index.html").write_text(_page(folder, metrics, plots, shown), encoding="utf-8")


def _page(folder: Path, metrics: Mapping[str, Any], plots: list[Path], shown: Mapping[str, str]) -> str:
    import jinja2

    source = resources.files("omniforcing.metrics").joinpath("page.html").read_text(encoding="utf-8")
    models, speed, gradients = metrics["models"], metrics["speed"], metrics["gradients"]
    return jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined).from_string(source).render(
        title=f"omniforcing, preset {metrics['settings']['preset']}: evaluation",
        tolerance_ms=f"{metrics['settings']['tolerance_ms']:g}",
        frechet=metrics["frechet"],
        models=models,
        columns=[c for c in COLUMNS if any(c in row for row in models.values())],
        references=REFERENCES,
        speed=speed,
        speed_columns=[name for name, value in speed.items() if _is_number(value)],
        speed_notes={name: value for name, value in speed.items() if not _is_number(value)},
        gradients=gradients,
        gradient_columns=sorted({name for row in gradients.values() for name in row}),
        plots=[plot.relative_to(folder).as_posix() for plot in plots],
        rows=[{"caption": caption, "cells": _cells(folder, models, index)} for index, caption in shown.items()],
        number=_number,
    )


def _cells(folder: Path, models: Mapping[str, Any], index: str) -> list[dict[str, str]]:
    stems = {model: f"clips/{model}/{index}" for model in models}
    return [{"model": model, "stem": stem} for model, stem in stems.items() if (folder / f"{stem}.mp4").is_file()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    """Three digits, or a dash for what does not apply."""
    if not _is_number(value):
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
