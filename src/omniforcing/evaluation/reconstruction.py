"""Reconstruction quality of the codec: figures, and pictures of originals over reconstructions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omniforcing.core.pair import Media
from omniforcing.media.mel import log_mel
from omniforcing.pocket.events import (
    SATURATION,
    AudioEvents,
    VideoEvents,
    detect_audio_events,
    detect_video_events,
)
from omniforcing.pocket.sync import score_sync

MOVING = 0.05  # of [0, 1]: pixels that differ more from the clip's median frame are foreground


def measure_reconstruction(original: Media, decoded: Media) -> dict[str, float]:
    """Measure reconstructions against originals.

    Args:
        original: frames uint8 ``[N, T, H, W, 3]`` and samples float32 ``[N, 2, S]``.
        decoded: their reconstructions, of the same shapes.

    Returns:
        PSNR of the picture and of its foreground (dB); error of the saturated pixels' centroid
        (pixels; a frame without any counts as the picture's height); log-mel L1; impacts per clip;
        F1 of impacts seen and of impacts heard against the original's at 50 ms; sync of the
        reconstruction; share of clips that keep their tone. A figure that the clips do not allow
        (nothing moves, nothing sounds, only one clip) is left out.
    """
    loudness = (log_mel(original.audio) - log_mel(decoded.audio)).abs().mean()
    events = _events(original, decoded) if len(original.video) > 1 else {}
    figures = {**_picture(original.video, decoded.video), "log_mel_l1": float(loudness), **events}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _picture(original: Tensor, decoded: Tensor) -> dict[str, float]:
    # Clip by clip: a set of real clips does not fit into memory as floats.
    clips = [_clip_errors(a, b) for a, b in zip(original, decoded, strict=True)]
    error, moving, distance = (torch.cat(values) for values in zip(*clips, strict=True))
    return {
        "psnr_db": _decibels(error),
        "foreground_psnr_db": _decibels(moving),
        "centroid_px_median": float(distance.median()) if len(distance) else float("nan"),
        "centroid_px_p95": float(distance.quantile(0.95)) if len(distance) else float("nan"),
    }


def _clip_errors(original: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute squared error ``[1]``, that of the foreground and centroid errors of one clip."""
    a, b = original.float() / 255, decoded.float() / 255
    # Every eighth frame is enough for the background, and the median of all is slow.
    moving = (a - a[::8].median(0).values).abs().mean(-1) > MOVING
    error = (a - b).square().mean(-1)
    foreground = error[moving].mean()[None] if moving.any() else error.new_empty(0)
    return error.mean()[None], foreground, _centroid_error(original, decoded)


def _decibels(errors: Tensor) -> float:
    return float(-10 * torch.log10(errors.mean().clamp(min=1e-10)))


def _centroid_error(original: Tensor, decoded: Tensor) -> Tensor:
    """Measure the pixels between two clips' centroids, in frames where the original has one."""
    a, exists = _centroid(original)
    b, kept = _centroid(decoded)
    distance = (a - b).norm(dim=-1)
    distance[~kept] = original.shape[1]
    return distance[exists]


def _centroid(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the saturation-weighted centre ``[T, 2]``, and whether there is one ``[T]``."""
    values = frames.float()
    weight = values.amax(-1) - values.amin(-1)
    weight = torch.where(weight > SATURATION, weight, 0.0)
    rows, columns = torch.arange(weight.shape[1]) + 0.5, torch.arange(weight.shape[2]) + 0.5
    total = weight.sum((1, 2))
    sums = torch.stack([weight.sum(2) @ rows, weight.sum(1) @ columns], -1)
    return sums / total.clamp(min=1)[..., None], total > 0


def _events(original: Media, decoded: Media) -> dict[str, float]:
    seen, heard = _detect(original)
    seen_again, heard_again = _detect(decoded)
    # The same matching of impacts, now of one stream with itself through the codec.
    picture = score_sync(_impacts(seen), _impacts(seen_again), 0.05)
    sound = score_sync(_impacts(heard), _impacts(heard_again), 0.05)
    both = score_sync(_impacts(seen_again), _impacts(heard_again))
    tones = []
    for before, after in zip(heard, heard_again, strict=True):
        if before.colours:
            tones.append(_most_common(before.colours) == _most_common(after.colours))
    return {
        "seen_f1": picture.pooled.f1,
        "heard_f1": sound.pooled.f1,
        "sync_f1": both.pooled.f1,
        "sync_shuffled_f1": both.pooled.shuffled_f1,
        "impacts_seen": float(np.mean([len(impacts) for impacts in _impacts(seen_again)])),
        "impacts_heard": float(np.mean([len(impacts) for impacts in _impacts(heard_again)])),
        "pitch_accuracy": float(np.mean(tones)) if tones else float("nan"),
    }


def _detect(media: Media) -> tuple[list[VideoEvents], list[AudioEvents]]:
    seen = [detect_video_events(frames.numpy()) for frames in media.video]
    heard = [detect_audio_events(samples.numpy()) for samples in media.audio]
    return seen, heard


def _impacts(clips: Sequence[VideoEvents | AudioEvents]) -> list[list[float]]:
    return [events.impacts for events in clips]


def _most_common(colours: list[str]) -> str:
    return max(colours, key=colours.count) if colours else ""


def draw_reconstructions(original: Media, decoded: Media, path: Path, frames: int = 10) -> None:
    """Write a picture of the first clips: frames and log-mels over their reconstructions.

    Args:
        original: frames uint8 ``[N, T, H, W, 3]`` and samples float32 ``[N, 2, S]``.
        decoded: their reconstructions, of the same shapes.
        path: picture to write.
        frames: frames to show of each clip.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = min(4, len(original.video))
    figure, axes = pyplot.subplots(4, count, figsize=(5 * count, 8), squeeze=False)
    for column in range(count):
        for row, media in enumerate((original, decoded)):
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
    """Place evenly spaced frames of ``[T, H, W, 3]`` side by side."""
    chosen = torch.linspace(0, len(clip) - 1, frames).round().long()
    return np.concatenate(list(clip[chosen].numpy()), 1)
