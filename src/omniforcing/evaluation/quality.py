"""Frechet distances between sets of clips, on features that need no downloaded weights and say so by name.

Random features see distortion (blur, noise, frozen or torn motion, wrong spectra), not meaning. Compare them within a run
only, never with published FVD or FAD figures.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from omniforcing.core.layout import FPS, LAYOUTS, SAMPLE_RATE, Block
from omniforcing.media.mel import log_mel

Array = NDArray[np.float64]

FEATURES = {
    # Three random strided convolutions, over frames for one half of the features and over frame differences for the other;
    # mean and deviation over space, then time.
    "video": "random-conv-64-v2",
    # Mean, deviation and mean absolute change over time of 16 log-mel bands, 60 dB below an impact taken for silence.
    "audio": "log-mel-statistics-48-v2",
}
HEIGHT = 64  # pictures are reduced to it
CHANNELS = (3, 16, 32, 32)  # of either half
WIDTH = 64
BANDS = 16
SILENCE = -7.0  # natural log; an impact's loudest bands reach 0, digital silence -11.5, which nobody can tell from -7
SHRINKAGE = 0.05
LEAST_SHARE = 1e-3  # of the features' mean variance: the least that counts as one feature's own
LEAST_VARIANCE = 1e-6  # of a reference whose clips are all alike
HALVINGS = 8  # random ones, to estimate what sampling amounts to


def _whole_seconds(count: int) -> list[Block]:
    """The first ``count`` seconds; before them lies the clip's first frame."""
    return list(LAYOUTS["prefix"].blocks(1 + count)[1:])


def video_features(frames: ArrayLike) -> Array:
    """Features of each whole second of ``frames`` uint8 ``[1+24K, H, W, 3]``: ``[K, 64]``."""
    pixels = torch.as_tensor(np.asarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    size = HEIGHT, max(1, round(HEIGHT * pixels.shape[-1] / pixels.shape[-2]))
    pixels = functional.interpolate(pixels, size, mode="area")
    hidden = torch.cat([pixels, 2 * torch.diff(pixels, dim=0, prepend=pixels[:1])], 1)
    for weight in _convolutions():
        hidden = functional.relu(functional.conv2d(hidden, weight, stride=2, padding=1, groups=2))
    halves = [torch.cat([half.mean((2, 3)), half.std((2, 3))], 1) for half in hidden.chunk(2, 1)]
    seconds = [second.frames.slice for second in _whole_seconds(len(pixels) // FPS)]
    return np.stack(
        [
            np.concatenate([_over_time(half[second]) @ _projection() for half in halves])
            for second in seconds
        ]
    )


def audio_features(samples: ArrayLike) -> Array:
    """Features of each whole second of ``samples`` float ``[2, 16000K]``: ``[K, 48]``."""
    sound = torch.as_tensor(np.asarray(samples)).float()
    mel = log_mel(sound[None])[0].mean(0).clamp(min=SILENCE)
    bands = mel.reshape(len(mel), BANDS, -1).mean(2).double().numpy()
    seconds = _whole_seconds(sound.shape[-1] // SAMPLE_RATE)
    return np.stack([_statistics(bands[second.mel.slice]) for second in seconds])


def frechet(found: Array, reference: Array) -> float:
    """Frechet distance of Gaussians fitted to features ``[N, D]`` and ``[M, D]``, each feature in units of its deviation in
    the reference, per feature: what varies little between real clips (how things move) counts as much as what varies a lot
    (how bright they are).

    0 for identical sets; 1 when the sets differ by as much as the reference's clips vary. Covariances are shrunk towards a
    multiple of the identity, so sets smaller than D are safe too.
    """
    unit = np.sqrt(
        np.maximum(
            reference.var(0), max(LEAST_SHARE * float(reference.var(0).mean()), LEAST_VARIANCE)
        )
    )
    return _distance(found / unit, reference / unit) / reference.shape[1]


def floor(reference: Array, clips: int, others: int) -> float:
    """An estimate of what sampling alone amounts to: of the distance from the reference of ``others`` new clips of its kind.

    The mean distance of random halves of the reference, scaled for the sizes compared: the part of such a distance that is
    due to sampling goes like the sum of both sets' ``1 / clips``. Halves are of whole clips, whose seconds are alike.

    Args:
        reference: features ``[clips * seconds, D]``, a clip's seconds one after the other.
        clips: how many clips they are of, at least 2.
        others: how many clips are compared with them.
    """
    half, rng = clips // 2, np.random.default_rng(0)
    by_clip = reference.reshape(clips, -1, reference.shape[1])
    orders = [rng.permutation(clips) for _ in range(HALVINGS)]
    halves = [
        [np.concatenate(by_clip[part]) for part in (order[:half], order[half:])] for order in orders
    ]
    share = (1 / others + 1 / clips) / (1 / half + 1 / (clips - half))
    return share * float(np.mean([frechet(*pair) for pair in halves]))


def _distance(found: Array, reference: Array) -> float:
    """``|m - m'|^2 + tr(C + C' - 2 (C' C)^(1/2))``."""
    (mean, covariance), (other, target) = [(x.mean(0), _covariance(x)) for x in (found, reference)]
    root = _root(target)
    cross = np.trace(_root(root @ covariance @ root))
    distance = ((mean - other) ** 2).sum() + np.trace(covariance) + np.trace(target) - 2 * cross
    return float(max(distance, 0.0))


def _covariance(features: Array) -> Array:
    centred = features - features.mean(0)
    covariance = centred.T @ centred / max(1, len(features) - 1)
    identity = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * identity


def _root(matrix: Array) -> Array:
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _over_time(per_frame: Tensor) -> Array:
    return torch.cat([per_frame.mean(0), per_frame.std(0)]).double().numpy()


def _statistics(bands: Array) -> Array:
    return np.concatenate([bands.mean(0), bands.std(0), np.abs(np.diff(bands, axis=0)).mean(0)])


@cache
def _convolutions() -> list[Tensor]:
    """He-scaled kernels ``[2 out, in, 3, 3]`` of two groups, the same on every machine."""
    rng = np.random.default_rng(0)
    sizes = itertools.pairwise(CHANNELS)
    return [
        torch.from_numpy(rng.normal(0, np.sqrt(2 / (into * 9)), (2 * out, into, 3, 3))).float()
        for into, out in sizes
    ]


@cache
def _projection() -> NDArray[Any]:
    """Orthonormal columns ``[4 * last channels, WIDTH / 2]``."""
    rng = np.random.default_rng(1)
    return np.linalg.qr(rng.normal(size=(4 * CHANNELS[-1], WIDTH // 2)))[0]
