"""Write an evaluation's results: ``metrics.json``, plots, and a page with the clips side by side.

All links of the page are relative, so that its folder can be moved and published.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniforcing.core.files import write_json
from omniforcing.evaluation.curves import Curves, draw_training
from omniforcing.evaluation.evaluate import NEAREST, Evaluation
from omniforcing.evaluation.plots import REFERENCES, write_plots
from omniforcing.evaluation.summary import CLIP_TABLE

SCHEMA = 1
# Figures in the page's table, in order.
COLUMNS = (
    *("sync_margin", "sync_margin_error", "sync_f1", "sync_f1_shuffled"),
    *("sync_offset_ms", "sync_offset_signed_ms"),
    *("events_video", "events_audio", "ball_present", "colour_accuracy", "pitch_accuracy"),
    *("frechet_video", "frechet_audio", "nearest_train", "memorised_share", "drift_margin"),
    "clips",
)
# Folder of the clips of two balls, within the scratch folder and within ``clips`` and ``plots``.
DUETS_FOLDER = "duets"


def write_report(
    folder: Path,
    work: Path,
    evaluation: Evaluation,
    settings: Mapping[str, Any],
    speed: Mapping[str, Any],
    gradients: Mapping[str, Mapping[str, float]],
    duets: Evaluation | None = None,
    training: tuple[Mapping[str, Curves], Mapping[str, Curves]] = ({}, {}),
) -> dict[str, Any]:
    """Write ``metrics.json``, ``clips.json``, ``plots/``, ``clips/`` and ``index.html``.

    Args:
        folder: empty folder to write into.
        work: scratch folder of the evaluation, which holds the media to show.
        evaluation: results of ``evaluate``.
        settings: ``preset``, ``tolerance_ms`` and anything else that tells how it was measured.
        speed: figures of speed and, as text, the machine that they were measured on.
        gradients: largest gradient norms of each training stage.
        duets: results for clips of two balls, whose media are in ``duets`` of ``work``.
        training: curves of the training stages, and those of the reference run.

    Returns:
        The content of ``metrics.json``.
    """
    metrics = {
        "schema": SCHEMA,
        "settings": dict(settings),
        "models": evaluation.models,
        "protocols": evaluation.measured.protocols,
        "frechet": evaluation.frechet,
        "memorisation": evaluation.memorisation,
        **_duets_metrics(duets),
        "speed": dict(speed),
        "gradients": dict(gradients),
    }
    write_json(folder / "metrics.json", metrics)
    _write_clip_table(folder, evaluation)
    (folder / "plots").mkdir()
    tolerance_ms = settings["tolerance_ms"]
    plots = write_plots(folder / "plots", evaluation.models, evaluation.offsets, tolerance_ms)
    if training[0]:
        plots.append(draw_training(folder / "plots" / "training.png", *training))
    splits = [_copy_split(folder, work, evaluation)]
    if duets:
        splits.append(_copy_split(folder, work, duets, DUETS_FOLDER))
    (folder / "index.html").write_text(_page(folder, metrics, plots, splits), encoding="utf-8")
    return metrics


def _write_clip_table(folder: Path, evaluation: Evaluation) -> None:
    """Write the measures of every clip, with the file of those that the page shows."""
    videos = {}
    for model in evaluation.models:
        for index in evaluation.shown:
            videos[model, index] = f"clips/{model}/{index}.mp4"
    write_json(folder / CLIP_TABLE, evaluation.measured.clip_table(videos))


def _duets_metrics(duets: Evaluation | None) -> dict[str, Any]:
    if duets is None:
        return {}
    return {
        "duets": duets.models,
        "duets_frechet": duets.frechet,
        "duets_memorisation": duets.memorisation,
    }


def _copy_split(
    folder: Path, work: Path, evaluation: Evaluation, split: str = ""
) -> dict[str, Any]:
    """Copy the media that the page shows of one split; returns what the page's template needs."""
    clips, nearest = Path("clips", split), Path("plots", split, NEAREST)
    for model in evaluation.models:
        (folder / clips / model).mkdir(parents=True)
        for index in evaluation.shown:
            for name in (f"{index}.mp4", f"{index}.png"):
                shutil.copyfile(work / split / model / name, folder / clips / model / name)
    drawn = (work / split / NEAREST).is_file()
    if drawn:
        (folder / nearest).parent.mkdir(exist_ok=True)
        shutil.copyfile(work / split / NEAREST, folder / nearest)
    measured = {name for figures in evaluation.models.values() for name in figures}
    return {
        "models": evaluation.models,
        "frechet": evaluation.frechet,
        "memorisation": evaluation.memorisation,
        "columns": [name for name in COLUMNS if name in measured],
        "measures": evaluation.measured.figures,
        "protocols": evaluation.measured.protocols,
        "shown": evaluation.shown,
        "clips": clips.as_posix(),
        "nearest": nearest.as_posix() if drawn else None,
    }


def _page(
    folder: Path, metrics: Mapping[str, Any], plots: list[Path], splits: list[dict[str, Any]]
) -> str:
    settings, speed, gradients = metrics["settings"], metrics["speed"], metrics["gradients"]
    return render_template(
        "page.html",
        title=f"omniforcing, preset {settings['preset']}: evaluation",
        tolerance_ms=f"{settings['tolerance_ms']:g}",
        main=splits[0],
        duets=splits[1] if len(splits) > 1 else None,
        references=REFERENCES,
        speed=speed,
        speed_columns=[name for name, value in speed.items() if _is_number(value)],
        speed_notes={name: value for name, value in speed.items() if not _is_number(value)},
        gradients=gradients,
        gradient_columns=sorted({name for row in gradients.values() for name in row}),
        plots=[plot.relative_to(folder).as_posix() for plot in plots],
        number=format_number,
    )


def render_template(name: str, **values: Any) -> str:
    """Render one of the room's HTML templates; values are escaped, unknown ones are empty."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("omniforcing.evaluation", ""),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
    )
    return environment.get_template(name).render(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_number(value: Any) -> str:
    """Format a figure with three digits; a dash if it does not apply, 0 below 1e-9."""
    if not _is_number(value):
        return "–"
    if abs(value) < 1e-9:
        return "0"
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
