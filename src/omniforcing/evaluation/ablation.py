"""Write an ablation's results: ``ablation.json``, one plot, and a page with relative links."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

from omniforcing.core.files import atomic_dir, write_json
from omniforcing.evaluation.plots import BAR, REFERENCE, new_figure, save_figure
from omniforcing.evaluation.report import COLUMNS, format_number, render_template

SCHEMA = 1
# What a row costs: training, and a stream.
COSTS = ("minutes", "peak_mb", "recomputed_mb", "ttfc_s", "block_p50_s")
REFERENCES = ("real", "chance", "teacher", "baseline")
# Metrics of the plot -> the key of their standard error, where they have one.
PANELS = {
    "sync_margin": "sync_margin_error",
    "drift_margin": "drift_margin_error",
    "ball_present": "",
    "colour_accuracy": "",
    "pitch_accuracy": "",
    "frechet_video": "",
    "frechet_audio": "",
}


def write_ablation(
    folder: Path,
    models: Mapping[str, Mapping[str, Any]],
    variants: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Write ``ablation.json``, ``ablation.png`` and ``index.html``, whole or not at all.

    Args:
        folder: folder to write.
        models: figures of references and variants, as in ``models`` of an evaluation, in the
            table's order.
        variants: ``about`` and ``overrides`` of each variant.
        settings: ``preset``, ``git_commit``, ``evaluation`` (the sha256 of the evaluation's
            manifest) and anything else that tells how it was measured.
    """
    rows = {name: row(figures) for name, figures in models.items()}
    content = {
        "schema": SCHEMA,
        "settings": dict(settings),
        "rows": rows,
        "variants": dict(variants),
    }
    with atomic_dir(folder) as unfinished:
        write_json(unfinished / "ablation.json", content)
        _draw(unfinished / "ablation.png", rows)
        (unfinished / "index.html").write_text(_page(rows, variants, settings), encoding="utf-8")


def row(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Select the table's columns of a model's figures, and the drift margin's standard error."""
    kept = {name: figures[name] for name in (*COLUMNS, *COSTS, "training") if name in figures}
    if "drift" in figures:
        # The drift margin is that of the last third.
        kept["drift_margin_error"] = figures["drift"]["thirds"]["error"][-1]
    return kept


def _draw(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw a panel for each of ``PANELS`` that a row has, with a bar per row."""
    measured = {metric for figures in rows.values() for metric in figures}
    panels = {metric: error for metric, error in PANELS.items() if metric in measured}
    size = {"width": 2.6 * len(panels), "height": 0.32 * len(rows) + 1.2}
    figure, axes = new_figure(1, len(panels), sharey=True, squeeze=False, **size)
    colours = [REFERENCE if name in REFERENCES else BAR for name in rows]
    for axis, (metric, error) in zip(axes[0], panels.items(), strict=True):
        values = _column(rows, metric)
        errors = _column(rows, error) if error else None
        axis.barh(range(len(rows)), values, xerr=errors, color=colours, capsize=3)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(metric.replace("_", " "), fontsize=10)
    axes[0][0].set_yticks(range(len(rows)), list(rows))
    axes[0][0].invert_yaxis()
    save_figure(figure, path)


def _column(rows: Mapping[str, Mapping[str, Any]], key: str) -> list[float]:
    """Return a figure of each row, NaN where it does not apply, which leaves a gap in the plot."""
    values = (figures.get(key) for figures in rows.values())
    return [nan if value is None else value for value in values]


def _page(
    rows: Mapping[str, Mapping[str, Any]],
    variants: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    measured = {name for figures in rows.values() for name in figures}
    columns = [name for name in (*COLUMNS, "drift_margin_error", *COSTS) if name in measured]
    return render_template(
        "ablation.html",
        title=f"omniforcing, preset {settings['preset']}: ablation",
        rows=rows,
        columns=columns,
        references=REFERENCES,
        variants=variants,
        settings=settings,
        number=format_number,
    )
