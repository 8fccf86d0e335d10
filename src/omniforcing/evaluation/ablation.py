"""What a stage ablation leaves behind: ``ablation.json``, one plot, and a page with both, all links relative."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from math import nan
from pathlib import Path
from typing import Any

from omniforcing.core.files import atomic_dir, write_json
from omniforcing.evaluation.plots import BAR, REFERENCE, new_figure, save_figure
from omniforcing.evaluation.report import COLUMNS, format_number

SCHEMA = 1
REFERENCES = ("real", "chance", "teacher", "baseline")
# Metrics of the plot, each with its standard error's key where it has one.
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
        folder: where to.
        models: the figures of references and variants, as in ``models`` of an evaluation, in the table's order.
        variants: ``about`` and ``overrides`` of each variant.
        settings: ``preset``, ``git_commit``, ``evaluation`` (the sha256 of the evaluation's manifest) and whatever else tells
            how it was measured.
    """
    rows = {name: row(figures) for name, figures in models.items()}
    with atomic_dir(folder) as partial:
        found = {
            "schema": SCHEMA,
            "settings": dict(settings),
            "rows": rows,
            "variants": dict(variants),
        }
        write_json(partial / "ablation.json", found)
        _draw(partial / "ablation.png", rows)
        (partial / "index.html").write_text(_page(rows, variants, settings), encoding="utf-8")


def row(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The table's columns of a model's figures, with the standard error of the drift margin, that of the last third."""
    kept = {name: figures[name] for name in COLUMNS if name in figures}
    if "drift" in figures:
        kept["drift_margin_error"] = figures["drift"]["thirds"]["error"][-1]
    return kept


def _draw(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Bars of those of ``PANELS`` that the rows have, a row per name."""
    panels = {
        metric: error
        for metric, error in PANELS.items()
        if any(metric in found for found in rows.values())
    }
    size = {"width": 2.6 * len(panels), "height": 0.32 * len(rows) + 1.2}
    figure, axes = new_figure(1, len(panels), sharey=True, squeeze=False, **size)
    colours = [REFERENCE if name in REFERENCES else BAR for name in rows]
    for axis, (metric, error) in zip(axes[0], panels.items(), strict=True):
        # Not a number leaves a gap, for what does not apply.
        values, errors = (
            [nan if found.get(key) is None else found[key] for found in rows.values()]
            for key in (metric, error)
        )
        axis.barh(
            range(len(rows)), values, xerr=errors if error else None, color=colours, capsize=3
        )
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(metric.replace("_", " "), fontsize=10)
    axes[0][0].set_yticks(range(len(rows)), list(rows))
    axes[0][0].invert_yaxis()
    save_figure(figure, path)


def _page(
    rows: Mapping[str, Mapping[str, Any]],
    variants: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    import jinja2

    source = (
        resources.files("omniforcing.evaluation")
        .joinpath("ablation.html")
        .read_text(encoding="utf-8")
    )
    columns = [
        name
        for name in (*COLUMNS, "drift_margin_error")
        if any(name in figures for figures in rows.values())
    ]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined).from_string(
        source
    )
    return template.render(
        title=f"omniforcing, preset {settings['preset']}: ablation of the stages",
        rows=rows,
        columns=columns,
        references=REFERENCES,
        variants=variants,
        settings=settings,
        number=format_number,
    )
