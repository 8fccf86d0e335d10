"""Plots of the evaluation: bars with ceiling and chance, offsets, drift, clips and spectrograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.layout import HOP, SAMPLE_RATE
from omniforcing.core.pair import Media
from omniforcing.media.mel import log_mel
from omniforcing.pocket.observe import Observation

Models = Mapping[str, Mapping[str, Any]]

SEEN, HEARD, CHANCE = "#3ddbe8", "#b6f442", "#d1495b"
BAR, REFERENCE = "#30638e", "#a9b4c2"
REFERENCES = ("real", "codec", "shuffled")
THUMBNAILS = 12  # frames in a film strip
THUMBNAIL_HEIGHT, GAP = 64, 4  # pixels: height of a film strip, space between two


def new_figure(
    rows: int = 1, columns: int = 1, width: float = 8, height: float = 3.6, **options: Any
) -> tuple[Any, Any]:
    """Make a figure of the house style; returns it and its axes.

    Args:
        rows: rows of axes.
        columns: columns of axes.
        width: width in inches.
        height: height in inches.
        **options: those of matplotlib's ``subplots``.
    """
    # Not pyplot, which keeps figures alive and picks a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, **options)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG; returns ``path``."""
    # Without the date and version that matplotlib adds, equal plots are equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def save_media(stem: Path, media: Media, observation: Observation) -> None:
    """Write one clip as ``<stem>.mp4``, and its picture of ``draw_media`` as ``<stem>.png``."""
    from omniforcing.media.files import write_mp4

    write_mp4(stem.with_suffix(".mp4"), media, crf=14)
    draw_media(stem.with_suffix(".png"), media, observation)


def draw_media(path: Path, media: Media, observation: Observation) -> None:
    """Write a picture of one clip: a film strip over the spectrogram with impacts seen and heard.

    Args:
        path: picture to write.
        media: frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``.
        observation: events of the clip.
    """
    figure, (top, bottom) = new_figure(2, height=2.6, width=6.4, height_ratios=[1, 2.4])
    top.imshow(film_strip(media.video))
    top.set_axis_off()
    _spectrogram(bottom, np.asarray(media.audio), observation)
    save_figure(figure, path)


def film_strip(frames: Any) -> NDArray[np.uint8]:
    """Place a few frames of uint8 ``[T, H, W, 3]`` side by side, at most 64 pixels high.

    Returns:
        The strip, uint8 ``[h, w, 3]``.
    """
    from PIL import Image

    pixels = np.asarray(frames)
    chosen = pixels[np.linspace(0, len(pixels) - 1, THUMBNAILS).round().astype(int)]
    strip = Image.fromarray(np.concatenate(list(chosen), 1))
    strip.thumbnail((strip.width, THUMBNAIL_HEIGHT))
    return np.asarray(strip)


def draw_nearest(path: Path, pairs: Sequence[tuple[Any, Any]], titles: Sequence[str]) -> None:
    """Write a picture of pairs of film strips, one above the other, each pair below its title."""
    figure, axes = new_figure(len(pairs), width=8.4, height=1.9 * len(pairs), squeeze=False)
    for axis, pair, title in zip(axes[:, 0], pairs, titles, strict=True):
        gap = np.full((GAP, *pair[0].shape[1:]), 255, np.uint8)
        axis.imshow(np.concatenate([pair[0], gap, pair[1]]))
        axis.set_title(title, fontsize=7, loc="left")
        axis.set_axis_off()
    save_figure(figure, path)


def _spectrogram(axis: Any, samples: Any, observation: Observation) -> None:
    """Draw a log-mel spectrogram with the impacts seen (upper half) and heard (lower half)."""
    import torch

    mel = log_mel(torch.as_tensor(samples).float()[None])[0].mean(0).numpy()
    seconds = samples.shape[-1] / SAMPLE_RATE
    half = HOP / SAMPLE_RATE / 2
    axis.imshow(
        mel.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(-half, seconds + half, 0, mel.shape[1]),
    )
    bins = mel.shape[1]
    axis.vlines(observation.seen.impacts, 0.5 * bins, bins, color=SEEN, lw=2, label="impact seen")
    axis.vlines(observation.heard.impacts, 0, 0.5 * bins, color=HEARD, lw=2, label="impact heard")
    axis.set(xlim=(0, seconds), xlabel="seconds", ylabel="mel bin", yticks=[])
    axis.legend(
        loc="lower right",
        bbox_to_anchor=(1, 0.97),
        ncols=2,
        fontsize=7,
        facecolor="#333",
        labelcolor="white",
    )


def write_plots(
    folder: Path, models: Models, offsets: Mapping[str, list[float]], tolerance_ms: float
) -> list[Path]:
    """Write every plot that the figures allow.

    Args:
        folder: folder to write into.
        models: figures of each model and reference.
        offsets: for each, offsets of matched impacts in milliseconds.
        tolerance_ms: milliseconds within which impacts match.

    Returns:
        The plots in reading order.
    """
    plots = [_frechet(folder / "frechet.png", models)]
    if any("sync_f1" in metrics for metrics in models.values()):
        plots = [
            _sync(folder / "sync.png", models),
            _offsets(folder / "offsets.png", offsets, tolerance_ms),
            _text(folder / "text.png", models),
            *plots,
        ]
    rollouts = {name: metrics["drift"] for name, metrics in models.items() if "drift" in metrics}
    return [*plots, _drift(folder / "drift.png", rollouts)] if rollouts else plots


def _bars(axis: Any, models: Models, metric: str) -> None:
    """Draw a bar per model, references in grey; a figure that does not apply has none."""
    colours = [REFERENCE if name in REFERENCES else BAR for name in models]
    axis.bar(
        range(len(models)),
        [metrics.get(metric) or 0.0 for metrics in models.values()],
        color=colours,
    )
    axis.set_xticks(range(len(models)), [name.replace("_", "\n", 1) for name in models], fontsize=8)


def _level(axis: Any, models: Models, name: str, metric: str, label: str, **style: Any) -> None:
    """Draw a reference's figure as a line across."""
    value = models.get(name, {}).get(metric)
    if value is not None:
        axis.axhline(value, color="black", lw=1, label=label, **style)


def _sync(path: Path, models: Models) -> Path:
    figure, (left, right) = new_figure(1, 2, width=11)
    _bars(left, models, "sync_f1")
    chance = [metrics.get("sync_f1_shuffled", np.nan) for metrics in models.values()]
    left.scatter(
        range(len(models)),
        chance,
        marker="_",
        s=300,
        color=CHANCE,
        label="own clips, sounds shuffled",
        zorder=3,
    )
    _level(left, models, "codec", "sync_f1", "codec", linestyle="--")
    _level(left, models, "shuffled", "sync_f1", "shuffled", linestyle=":")
    left.set(title="sync F1", ylim=(0, 1.05))
    _bars(right, models, "sync_margin")
    error = [metrics.get("sync_margin_error") or 0.0 for metrics in models.values()]
    margin = [metrics.get("sync_margin") or 0.0 for metrics in models.values()]
    right.errorbar(range(len(models)), margin, error, fmt="none", color="black", capsize=3)
    _level(right, models, "codec", "sync_margin", "codec", linestyle="--")
    right.axhline(0, color="black", lw=0.8)
    right.set_title("sync margin: F1 less shuffled F1 (± standard error)")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    return save_figure(figure, path)


def _offsets(path: Path, offsets: Mapping[str, list[float]], tolerance_ms: float) -> Path:
    figure, axes = new_figure(
        1, len(offsets), width=max(4, 2.0 * len(offsets)), height=2.6, sharex=True, squeeze=False
    )
    edges = np.linspace(-tolerance_ms, tolerance_ms, 33)
    for axis, (name, values) in zip(axes[0], offsets.items(), strict=True):
        axis.hist(values, edges, color=REFERENCE if name in REFERENCES else BAR)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(name, fontsize=8)
    axes[0][0].set_ylabel("matched impacts")
    figure.supxlabel("sound after picture, ms", fontsize=9)
    return save_figure(figure, path)


def _text(path: Path, models: Models) -> Path:
    figure, axes = new_figure(1, 3, width=12, height=3)
    for axis, metric in zip(
        axes, ("colour_accuracy", "pitch_accuracy", "ball_present"), strict=True
    ):
        _bars(axis, models, metric)
        _level(axis, models, "codec", metric, "codec", linestyle="--")
        axis.set(title=metric.replace("_", " "), ylim=(0, 1.05))
        axis.tick_params(axis="x", labelsize=6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return save_figure(figure, path)


def _frechet(path: Path, models: Models) -> Path:
    figure, axes = new_figure(1, 2, width=11, height=3)
    for axis, metric in zip(axes, ("frechet_video", "frechet_audio"), strict=True):
        _bars(axis, models, metric)
        _level(axis, models, "codec", metric, "codec", linestyle="--")
        axis.set_title(f"{metric.replace('_', ' ')}, in the real clips' variance")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return save_figure(figure, path)


def _drift(path: Path, rollouts: Mapping[str, Mapping[str, Any]]) -> Path:
    figure, (top, bottom) = new_figure(2, height=4.6, sharex=True)
    for name, drift in rollouts.items():
        margin = np.array(drift["per_second"]["margin"])
        error = np.array(drift["per_second"]["error"])
        middle = np.arange(len(margin)) + 0.5
        (line,) = top.plot(middle, margin, marker="o", ms=3, label=name)
        top.fill_between(middle, margin - error, margin + error, alpha=0.2, color=line.get_color())
        present = drift["ball_present_thirds"]
        bottom.stairs(
            present,
            np.linspace(0, drift["seconds"], len(present) + 1),
            baseline=None,
            color=line.get_color(),
            lw=2,
        )
        for axis in (top, bottom):
            axis.axvline(drift["seconds"] / len(present), color="black", lw=0.8, linestyle=":")
    top.axhline(0, color="black", lw=0.8)
    top.set_title("sync margin along the rollout (± standard error); dotted: the trained length")
    top.legend(fontsize=7)
    bottom.set(title="share of frames with a ball", ylim=(0, 1.05), xlabel="seconds")
    return save_figure(figure, path)
