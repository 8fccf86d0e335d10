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

from omniforcing.codec.mel import log_mel
from omniforcing.layout import FPS, LAYOUTS, SAMPLE_RATE, Block

Array = NDArray[np.float64]

FEATURES = {
    # Three random strided convolutions over frames and frame differences; mean and deviation over space, then time.
    "video": "random-conv-64-v1",
    # Mean, deviation and mean absolute change over time of 16 log-mel bands, 60 dB below an impact taken for silence.
    "audio": "log-mel-statistics-48-v1",
}
HEIGHT = 64  # pictures are reduced to it
CHANNELS = (6, 16, 32, 32)
WIDTH = 64
BANDS = 16
SILENCE = -7.0  # natural log; an impact's loudest bands reach 0, digital silence -11.5, which nobody can tell from -7
SHRINKAGE = 0.05
LEAST_VARIANCE = 1e-6  # of a reference whose clips are all alike


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
        hidden = functional.relu(functional.conv2d(hidden, weight, stride=2, padding=1))
    per_frame = torch.cat([hidden.mean((2, 3)), hidden.std((2, 3))], 1)
    seconds = _whole_seconds(len(pixels) // FPS)
    return np.stack([_over_time(per_frame[second.frames.slice]) @ _projection() for second in seconds])


def audio_features(samples: ArrayLike) -> Array:
    """Features of each whole second of ``samples`` float ``[2, 16000K]``: ``[K, 48]``."""
    sound = torch.as_tensor(np.asarray(samples)).float()
    mel = log_mel(sound[None])[0].mean(0).clamp(min=SILENCE)
    bands = mel.reshape(len(mel), BANDS, -1).mean(2).double().numpy()
    seconds = _whole_seconds(sound.shape[-1] // SAMPLE_RATE)
    return np.stack([_statistics(bands[second.mel.slice]) for second in seconds])


def frechet(found: Array, reference: Array) -> float:
    """Frechet distance of Gaussians fitted to features ``[N, D]`` and ``[M, D]``, in units of the reference's variance.

    0 for identical sets; 1 when the sets differ by as much as the reference's clips vary in total. Covariances are shrunk
    towards a multiple of the identity, so sets smaller than D are safe too.
    """
    return _distance(found, reference) / _variance(reference)


def floor(reference: Array) -> float:
    """The distance between the two halves of the reference ``[M, D]``, M >= 2: what sampling alone amounts to."""
    half = len(reference) // 2
    return _distance(reference[:half], reference[half:]) / _variance(reference)


def _variance(reference: Array) -> float:
    return max(float(np.trace(_covariance(reference))), LEAST_VARIANCE)


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
    """He-scaled kernels ``[out, in, 3, 3]``, the same on every machine."""
    rng = np.random.default_rng(0)
    sizes = itertools.pairwise(CHANNELS)
    return [torch.from_numpy(rng.normal(0, np.sqrt(2 / (into * 9)), (out, into, 3, 3))).float() for into, out in sizes]


@cache
def _projection() -> NDArray[Any]:
    """Orthonormal columns ``[4 * last channels, WIDTH]``."""
    rng = np.random.default_rng(1)
    return np.linalg.qr(rng.normal(size=(4 * CHANNELS[-1], WIDTH)))[0]
