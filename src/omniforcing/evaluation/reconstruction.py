"""How well the codec gives back what it is given: numbers, and pictures of original over reconstruction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omniforcing.core.latents import Media
from omniforcing.media.mel import log_mel
from omniforcing.pocket.events import SATURATION, detect_audio_events, detect_video_events
from omniforcing.pocket.sync import score_sync

MOVING = 0.05  # difference from the clip's median frame, of [0, 1], that counts as foreground


def measure_reconstruction(original: Media, found: Media) -> dict[str, float]:
    """Figures of merit of reconstructions against originals, for clips of one size.

    Returns:
        PSNR, and that of what moves (dB); centroid error of what is saturated (pixels, median and 95th percentile; a frame
        where it is gone counts as the picture's height); log-mel L1; impacts per clip; F1 of impacts seen, and of impacts
        heard, in the reconstruction against the original at 50 ms; its sync; the share of clips that keep their tone.
        A figure that the clips do not allow (nothing moves, nothing sounds, only one clip) is left out.
    """
    loudness = (log_mel(original.audio) - log_mel(found.audio)).abs().mean()
    events = _events(original, found) if len(original.video) > 1 else {}
    figures = {**_picture(original.video, found.video), "log_mel_l1": float(loudness), **events}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _picture(original: Tensor, found: Tensor) -> dict[str, float]:
    # Clip by clip: a set of real clips does not fit into memory as floats.
    clips = [_film(a, b) for a, b in zip(original, found, strict=True)]
    error, moving, distance = (torch.cat(values) for values in zip(*clips, strict=True))
    return {
        "psnr_db": _decibels(error),
        "foreground_psnr_db": _decibels(moving),
        "centroid_px_median": float(distance.median()) if len(distance) else float("nan"),
        "centroid_px_p95": float(distance.quantile(0.95)) if len(distance) else float("nan"),
    }


def _film(original: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared error, that of what moves (none if nothing does), and centroid errors, of clips ``[T, H, W, 3]``."""
    a, b = original.float() / 255, found.float() / 255
    moving = (a - a[::8].median(0).values).abs().mean(-1) > MOVING
    error = (a - b).square().mean(-1)
    foreground = error[moving].mean()[None] if moving.any() else error.new_empty(0)
    return error.mean()[None], foreground, _centroid_error(original, found)


def _decibels(errors: Tensor) -> float:
    return float(-10 * torch.log10(errors.mean().clamp(min=1e-10)))


def _centroid_error(original: Tensor, found: Tensor) -> Tensor:
    """Pixels between the saturation-weighted centres of two films, for the frames in which the original has one."""
    (a, there), (b, still) = _centroid(original), _centroid(found)
    distance = (a - b).norm(dim=-1)
    distance[~still] = original.shape[1]
    return distance[there]


def _centroid(frames: Tensor) -> tuple[Tensor, Tensor]:
    values = frames.float()
    weight = values.amax(-1) - values.amin(-1)
    weight = torch.where(weight > SATURATION, weight, 0.0)
    rows, columns = torch.arange(weight.shape[1]) + 0.5, torch.arange(weight.shape[2]) + 0.5
    total = weight.sum((1, 2))
    centre = (
        torch.stack([weight.sum(2) @ rows, weight.sum(1) @ columns], -1)
        / total.clamp(min=1)[..., None]
    )
    return centre, total > 0


def _events(original: Media, found: Media) -> dict[str, float]:
    seen, heard = _perceive(original)
    seen_again, heard_again = _perceive(found)
    picture = score_sync([s.impacts for s in seen], [s.impacts for s in seen_again], 0.05)
    sound = score_sync([h.impacts for h in heard], [h.impacts for h in heard_again], 0.05)
    both = score_sync([s.impacts for s in seen_again], [h.impacts for h in heard_again])
    tones = [
        _usual(h.colours) == _usual(again.colours)
        for h, again in zip(heard, heard_again, strict=True)
        if h.colours
    ]
    return {
        "seen_f1": picture.pooled.f1,
        "heard_f1": sound.pooled.f1,
        "sync_f1": both.pooled.f1,
        "sync_shuffled_f1": both.pooled.shuffled_f1,
        "impacts_seen": float(np.mean([len(s.impacts) for s in seen_again])),
        "impacts_heard": float(np.mean([len(h.impacts) for h in heard_again])),
        "pitch_accuracy": float(np.mean(tones)) if tones else float("nan"),
    }


def _perceive(media: Media) -> tuple[list[Any], list[Any]]:
    return [detect_video_events(frames.numpy()) for frames in media.video], [
        detect_audio_events(samples.numpy()) for samples in media.audio
    ]


def _usual(colours: list[str]) -> str:
    return max(colours, key=colours.count) if colours else ""


def draw_reconstructions(original: Media, found: Media, path: Path, frames: int = 10) -> None:
    """Write a picture: for the first clips, frames over their reconstructions and log-mels over theirs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = min(4, len(original.video))
    figure, axes = pyplot.subplots(4, count, figsize=(5 * count, 8), squeeze=False)
    for column in range(count):
        for row, media in enumerate((original, found)):
            axes[row, column].imshow(_strip(media.video[column], frames))
            mel = log_mel(media.audio[column : column + 1])[0, 0]
            axes[2 + row, column].imshow(
                mel.T.numpy(), origin="lower", aspect="auto", vmin=-11.5, vmax=2
            )
    for axis, label in zip(axes[:, 0], ("original", "reconstruction") * 2, strict=True):
        axis.set_ylabel(label)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _strip(clip: Tensor, frames: int) -> NDArray[np.uint8]:
    """Frames ``[T, H, W, 3]``, evenly spaced, side by side."""
    chosen = torch.linspace(0, len(clip) - 1, frames).round().long()
    return np.concatenate(list(clip[chosen].numpy()), 1)
