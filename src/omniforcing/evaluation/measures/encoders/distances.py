"""Frechet and kernel distances between sets of clips, on features of pretrained encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from omniforcing.evaluation.measures.base import Figure
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.models import ClapEncoder, VjepaEncoder
from omniforcing.evaluation.measures.encoders.programs import I3dProgram
from omniforcing.evaluation.measures.encoders.weights import WithWeights
from omniforcing.evaluation.quality import floor, gaussian_distance

Array = NDArray[np.float64]


class Distance(WithWeights):
    """Base: a distance from other clips, usually real ones."""

    needs_reference: ClassVar[bool] = True
    least = 32

    def observe(self, clip: Clip) -> NDArray[Any]:
        """Features of a clip ``[D]``."""
        return np.asarray(self.features(clip))

    def features(self, clip: Clip) -> NDArray[Any]:
        """Embed a clip."""
        raise NotImplementedError

    def value(self, seen: Sequence[Any]) -> float:
        raise NotImplementedError("a distance needs a reference")

    def of_clip(self, seen: Any) -> float | None:
        del seen
        return None


class Frechet(Distance):
    """Frechet distance of Gaussians fitted to both sets, without scaling or shrinkage.

    It is biased upwards, the more the fewer clips there are: ``floor`` is what sampling alone
    amounts to, estimated from halves of the reference.
    """

    def figure(self, seen: Sequence[Any], reference: Sequence[Any]) -> Figure:
        mine, others = np.asarray(seen, float), np.asarray(reference, float)
        lowest = floor(others, len(others), len(mine), gaussian_distance)
        return Figure(gaussian_distance(mine, others), None, None, len(mine), lowest)


class Mmd(Distance):
    """Kernel distance (KID, KVD): unbiased squared MMD with the kernel (x y / D + 1)^3."""

    least = 4
    has_ratio = False  # unbiased: it may be negative

    def figure(self, seen: Sequence[Any], reference: Sequence[Any]) -> Figure:
        value, error = mmd(np.asarray(seen, float), np.asarray(reference, float))
        return Figure(value, value - 1.96 * error, value + 1.96 * error, len(seen), 0.0)


def mmd(features: Array, reference: Array) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy, and its jackknife error over ``features``.

    Args:
        features: ``[N, D]``.
        reference: ``[M, D]``.
    """
    own, others = _kernel(features, features), _kernel(reference, reference)
    cross = _kernel(features, reference)
    n, m = len(features), len(reference)
    np.fill_diagonal(own, 0)
    rest = (others.sum() - np.trace(others)) / (m * (m - 1))
    value = own.sum() / (n * (n - 1)) + rest - 2 * cross.mean()
    own_left = (own.sum() - 2 * own.sum(1)) / ((n - 1) * (n - 2))
    cross_left = (cross.sum() - cross.sum(1)) / ((n - 1) * m)
    left = own_left + rest - 2 * cross_left
    error = np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())
    return float(value), float(error)


def _kernel(x: Array, y: Array) -> Array:
    kernel: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


class _Vjepa(Distance):
    encoder_kind = VjepaEncoder
    licence = "not verified: MIT by a port of facebook/vjepa2-vitl-fpc64-256"

    def features(self, clip: Clip) -> NDArray[Any]:
        return np.asarray(self.encoder.picture(clip))


class _Clap(Distance):
    encoder_kind = ClapEncoder
    licence = "Apache-2.0 (laion/clap-htsat-unfused)"

    def features(self, clip: Clip) -> NDArray[Any]:
        return np.asarray(self.encoder.sound(clip))


_MOVES = "V-JEPA 2, mean of all tokens of the model's number of frames, evenly spaced"
_SOUNDS = "CLAP, 48 kHz mono, at most 10 s"


class FrechetVjepa(_Vjepa, Frechet):
    """Frechet distance of pictures by V-JEPA 2."""

    name = "frechet_vjepa2"
    protocol = f"Frechet distance; {_MOVES}"


class MmdVjepa(_Vjepa, Mmd):
    """Kernel distance of pictures by V-JEPA 2."""

    name = "mmd_vjepa2"
    protocol = f"unbiased squared MMD, cubic kernel; {_MOVES}"


class FrechetClap(_Clap, Frechet):
    """Frechet distance of sounds by CLAP."""

    name = "frechet_clap"
    protocol = f"Frechet distance; {_SOUNDS}"


class MmdClap(_Clap, Mmd):
    """Kernel distance of sounds by CLAP."""

    name = "mmd_clap"
    protocol = f"unbiased squared MMD, cubic kernel; {_SOUNDS}"


class FvdI3d(Frechet):
    """Frechet video distance by an I3D program."""

    name = "fvd_i3d"
    protocol = "Frechet distance; I3D logits of 24 frames, evenly spaced, short side 224, cropped"
    encoder_kind = I3dProgram
    licence = "of the file"

    def features(self, clip: Clip) -> NDArray[Any]:
        return np.asarray(self.encoder.features(clip))
