"""Frechet distances between sets of clips, on features that need no downloaded weights.

The features are random convolutions and log-mel statistics; their names say so. They see distortion
(blur, noise, frozen or torn motion, wrong spectra), not meaning. Compare distances within a run
only, never with published FVD or FAD figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
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
    # Three random strided convolutions, over frames for one half of the features and over frame
    # differences for the other; mean and deviation over space, then over time.
    "video": "random-conv-64-v2",
    # Mean, deviation and mean absolute change over time of 16 log-mel bands; 60 dB below an impact
    # is silence.
    "audio": "log-mel-statistics-48-v2",
}
HEIGHT = 64  # pixels to which pictures are reduced
CHANNELS = (3, 16, 32, 32)  # channels of the convolutions of either half
WIDTH = 64  # features of a picture
BANDS = 16  # frequency bands of the sound
# Natural log. An impact's loudest bands reach 0; digital silence, -11.5, sounds no different.
SILENCE = -7.0
SHRINKAGE = 0.05  # of covariances, towards a multiple of the identity
LEAST_SHARE = 1e-3  # of the mean variance: least variance of a feature by which it is scaled
LEAST_VARIANCE = 1e-6  # the same for a reference whose clips are all alike
HALVINGS = 8  # random halvings of the reference that estimate what sampling amounts to


def _whole_seconds(count: int) -> list[Block]:
    """Return the blocks of a clip's ``count`` seconds, without the first frame before them."""
    return list(LAYOUTS["prefix"].blocks(1 + count)[1:])


def video_features(frames: ArrayLike) -> Array:
    """Compute features of a clip's picture.

    Args:
        frames: uint8 ``[1+24K, H, W, 3]``.

    Returns:
        Features of each whole second ``[K, 64]``.
    """
    pixels = torch.as_tensor(np.asarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    size = HEIGHT, max(1, round(HEIGHT * pixels.shape[-1] / pixels.shape[-2]))
    if size != pixels.shape[-2:]:
        pixels = functional.interpolate(pixels, size, mode="area")
    # Two groups that never mix: frames for what is seen, their differences for how it moves.
    hidden = torch.cat([pixels, 2 * torch.diff(pixels, dim=0, prepend=pixels[:1])], 1)
    for weight in _convolutions():
        hidden = functional.conv2d(hidden, weight, stride=2, padding=1, groups=2).relu_()
    halves = [torch.cat([half.mean((2, 3)), half.std((2, 3))], 1) for half in hidden.chunk(2, 1)]
    features = []
    for second in _whole_seconds(len(pixels) // FPS):
        parts = [_over_time(half[second.frames.slice]) @ _projection() for half in halves]
        features.append(np.concatenate(parts))
    return np.stack(features)


def audio_features(samples: ArrayLike) -> Array:
    """Compute features of a clip's sound.

    Args:
        samples: float ``[2, 16000K]``.

    Returns:
        Features of each whole second ``[K, 48]``.
    """
    sound = torch.as_tensor(np.asarray(samples)).float()
    mel = log_mel(sound[None])[0].mean(0).clamp(min=SILENCE)
    bands = mel.reshape(len(mel), BANDS, -1).mean(2).double().numpy()
    seconds = _whole_seconds(sound.shape[-1] // SAMPLE_RATE)
    return np.stack([_statistics(bands[second.mel.slice]) for second in seconds])


def frechet(features: Array, reference: Array) -> float:
    """Compute the Frechet distance of Gaussians fitted to two sets of features, per feature.

    Each feature is in units of its deviation in the reference: what varies little between real
    clips (how things move) counts as much as what varies a lot (how bright they are). Covariances
    are shrunk towards a multiple of the identity, so sets smaller than D are safe too.

    Args:
        features: ``[N, D]``.
        reference: ``[M, D]``.

    Returns:
        0 for identical sets; 1 when they differ by as much as the reference's clips vary.
    """
    variance = reference.var(0)
    least = max(LEAST_SHARE * float(variance.mean()), LEAST_VARIANCE)
    unit = np.sqrt(np.maximum(variance, least))
    distance = gaussian_distance(features / unit, reference / unit, SHRINKAGE)
    return distance / reference.shape[1]


def floor(
    reference: Array,
    clips: int,
    others: int,
    distance: Callable[[Array, Array], float] = frechet,
) -> float:
    """Estimate the distance that new clips of the reference's own kind would have from it.

    It is the mean distance between random halves of the reference, scaled to the sizes compared:
    the part of a distance that is due to sampling goes like the sum of both sets' ``1 / clips``.
    Whole clips are drawn, for the seconds of a clip are alike.

    Args:
        reference: features ``[clips * seconds, D]``, a clip's seconds one after the other.
        clips: number of clips in the reference, at least 2.
        others: number of clips that are compared with it.
        distance: which distance.

    Returns:
        The distance that sampling alone amounts to.
    """
    half, rng = clips // 2, np.random.default_rng(0)
    by_clip = reference.reshape(clips, -1, reference.shape[1])
    distances = []
    for _ in range(HALVINGS):
        order = rng.permutation(clips)
        left, right = np.concatenate(by_clip[order[:half]]), np.concatenate(by_clip[order[half:]])
        distances.append(distance(left, right))
    share = (1 / others + 1 / clips) / (1 / half + 1 / (clips - half))
    return share * float(np.mean(distances))


def gaussian_distance(features: Array, reference: Array, shrinkage: float = 0.0) -> float:
    """Compute the Frechet distance of Gaussians, ``|m - m'|^2 + tr(C + C' - 2 (C' C)^(1/2))``.

    Args:
        features: ``[N, D]``.
        reference: ``[M, D]``.
        shrinkage: of both covariances, towards a multiple of the identity.
    """
    mean, covariance = features.mean(0), _covariance(features, shrinkage)
    other, target = reference.mean(0), _covariance(reference, shrinkage)
    # The trace of (C' C)^(1/2) is that of (R C R)^(1/2) with R = C'^(1/2), which is symmetric.
    root = _root(target)
    cross = np.trace(_root(root @ covariance @ root))
    distance = ((mean - other) ** 2).sum() + np.trace(covariance) + np.trace(target) - 2 * cross
    return float(max(distance, 0.0))


def _covariance(features: Array, shrinkage: float) -> Array:
    centred = features - features.mean(0)
    covariance = centred.T @ centred / max(1, len(features) - 1)
    identity = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * identity


def _root(matrix: Array) -> Array:
    """Compute the square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _over_time(per_frame: Tensor) -> Array:
    return torch.cat([per_frame.mean(0), per_frame.std(0)]).double().numpy()


def _statistics(bands: Array) -> Array:
    return np.concatenate([bands.mean(0), bands.std(0), np.abs(np.diff(bands, axis=0)).mean(0)])


@cache
def _convolutions() -> list[Tensor]:
    """Draw He-scaled kernels ``[2 out, in, 3, 3]`` of two groups, the same on every machine."""
    rng = np.random.default_rng(0)
    kernels = []
    for into, out in itertools.pairwise(CHANNELS):
        weights = rng.normal(0, np.sqrt(2 / (into * 9)), (2 * out, into, 3, 3))
        kernels.append(torch.from_numpy(weights).float())
    return kernels


@cache
def _projection() -> NDArray[Any]:
    """Draw orthonormal columns ``[4 * last channels, WIDTH / 2]``."""
    rng = np.random.default_rng(1)
    return np.linalg.qr(rng.normal(size=(4 * CHANNELS[-1], WIDTH // 2)))[0]
