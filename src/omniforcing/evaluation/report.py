"""What an evaluation leaves behind: ``metrics.json``, plots, and a page with the clips side by side, all links relative."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from omniforcing.core.files import write_json
from omniforcing.evaluation.curves import Curves, draw_training
from omniforcing.evaluation.evaluate import NEAREST, Evaluation
from omniforcing.evaluation.plots import REFERENCES, write_plots

SCHEMA = 1
COLUMNS = (
    *(
        "sync_margin",
        "sync_margin_error",
        "sync_f1",
        "sync_f1_shuffled",
        "sync_offset_ms",
        "sync_offset_signed_ms",
    ),
    *("events_video", "events_audio", "ball_present", "colour_accuracy", "pitch_accuracy"),
    *(
        "frechet_video",
        "frechet_audio",
        "nearest_train",
        "memorised_share",
        "drift_margin",
        "clips",
    ),
)
DUETS_FOLDER = (
    "duets"  # of the harder split, within the scratch folder and within ``clips`` and ``plots``
)


def write_report(
    folder: Path,
    work: Path,
    found: Evaluation,
    settings: Mapping[str, Any],
    speed: Mapping[str, Any],
    gradients: Mapping[str, Mapping[str, float]],
    duets: Evaluation | None = None,
    training: tuple[Mapping[str, Curves], Mapping[str, Curves]] = ({}, {}),
) -> dict[str, Any]:
    """Write ``metrics.json``, ``plots/``, ``clips/`` and ``index.html`` into an empty folder; returns the metrics.

    Args:
        folder: where to.
        work: the evaluation's scratch folder, which holds the media to show.
        found: what ``evaluate`` measured.
        settings: ``preset``, ``tolerance_ms`` and whatever else tells how it was measured.
        speed: figures and, as text, what they were measured on.
        gradients: largest gradient norms of each training stage.
        duets: the same of clips of two balls, in the folder ``duets`` of ``work``; None where there are none.
        training: curves of the training stages, and those of the reference run.
    """
    metrics = {
        "schema": SCHEMA,
        "settings": dict(settings),
        "models": found.models,
        "frechet": found.frechet,
        "memorisation": found.memorisation,
        **_of_duets(duets),
        "speed": dict(speed),
        "gradients": dict(gradients),
    }
    write_json(folder / "metrics.json", metrics)
    (folder / "plots").mkdir()
    plots = write_plots(folder / "plots", found.models, found.offsets, settings["tolerance_ms"])
    if training[0]:
        plots.append(draw_training(folder / "plots" / "training.png", *training))
    parts = [_part(folder, work, found)]
    if duets:
        parts.append(_part(folder, work, duets, DUETS_FOLDER))
    (folder / "index.html").write_text(_page(folder, metrics, plots, parts), encoding="utf-8")
    return metrics


def _of_duets(duets: Evaluation | None) -> dict[str, Any]:
    if duets is None:
        return {}
    return {
        "duets": duets.models,
        "duets_frechet": duets.frechet,
        "duets_memorisation": duets.memorisation,
    }


def _part(folder: Path, work: Path, found: Evaluation, split: str = "") -> dict[str, Any]:
    """Copy the media that the page shows of one split, and say where they lie and what the table has."""
    clips, nearest = Path("clips", split), Path("plots", split, NEAREST)
    for model in found.models:
        (folder / clips / model).mkdir(parents=True)
        for kept in (
            work / split / model / f"{index}{suffix}"
            for index in found.shown
            for suffix in (".mp4", ".png")
        ):
            shutil.copyfile(kept, folder / clips / model / kept.name)
    drawn = (work / split / NEAREST).is_file()
    if drawn:
        (folder / nearest).parent.mkdir(exist_ok=True)
        shutil.copyfile(work / split / NEAREST, folder / nearest)
    return {
        "models": found.models,
        "frechet": found.frechet,
        "memorisation": found.memorisation,
        "columns": [c for c in COLUMNS if any(c in row for row in found.models.values())],
        "shown": found.shown,
        "clips": clips.as_posix(),
        "nearest": nearest.as_posix() if drawn else None,
    }


def _page(
    folder: Path, metrics: Mapping[str, Any], plots: list[Path], parts: list[dict[str, Any]]
) -> str:
    import jinja2

    source = (
        resources.files("omniforcing.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    )
    speed, gradients = metrics["speed"], metrics["gradients"]
    return (
        jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
        .from_string(source)
        .render(
            title=f"omniforcing, preset {metrics['settings']['preset']}: evaluation",
            tolerance_ms=f"{metrics['settings']['tolerance_ms']:g}",
            main=parts[0],
            duets=parts[1] if len(parts) > 1 else None,
            references=REFERENCES,
            speed=speed,
            speed_columns=[name for name, value in speed.items() if _is_number(value)],
            speed_notes={name: value for name, value in speed.items() if not _is_number(value)},
            gradients=gradients,
            gradient_columns=sorted({name for row in gradients.values() for name in row}),
            plots=[plot.relative_to(folder).as_posix() for plot in plots],
            number=format_number,
        )
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_number(value: Any) -> str:
    """Three digits, or a dash for what does not apply; what rounding leaves of zero is zero."""
    if not _is_number(value):
        return "–"
    if abs(value) < 1e-9:
        return "0"
    return (
        str(value)
        if isinstance(value, int)
        else f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.3g}"
    )
