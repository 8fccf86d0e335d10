"""Memorisation: how near a clip lies to its nearest training clip, against how near new real clips lie to theirs.

Distances are between descriptors of the media alone, so any two clips of one length compare. Of the picture they hold what
moves, coarsely: size, place and time of a ball count, the still background does not. Of the sound they hold loud bands: slight
hiss does not count. A copy of a training clip that went through the pocket codec lies at about a third of the distance of a
new real clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from omniforcing.core.files import atomic_dir
from omniforcing.core.latents import Media, Pair
from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.media.mel import log_mel
from omniforcing.pocket.observe import DESCRIPTORS, Clips, load_pair, save_pair

Array = NDArray[np.floating[Any]]

DESCRIPTOR = "motion-8x8x6fps+mel16-v1"
RATE = 6  # per second, of picture and sound
SIDE = 8
BANDS = 16
SILENCE = (
    -4.0
)  # natural log; an impact's loudest bands reach 0, and 35 dB below them noise is no difference
NEIGHBOURS = 10  # training clips around a clip that say what is near where it lies
COPY = 0.5  # of the mean distance to those: a copy is nearer, also among few held-out clips
FRAMES = 4  # so many at once are held as floats
LEAST = 1e-6  # variances and distances are at least this where they divide


def clip_descriptor(media: Media) -> Pair[Array]:
    """The descriptor of one clip of K whole seconds: float32 ``[6K * 8 * 8 * 3]`` of the picture, ``[6K * 16]`` of the sound.

    The picture is averaged over cells and time, less each cell's median over the clip; the sound is log-mel, averaged alike.
    """
    frames = torch.as_tensor(np.asarray(media.video))
    pooled = torch.empty(len(frames), 3, SIDE, SIDE)
    for some, place in zip(frames.split(FRAMES), pooled.split(FRAMES), strict=True):
        place.copy_(functional.adaptive_avg_pool2d(some.permute(0, 3, 1, 2).float(), SIDE))
    cells = functional.adaptive_avg_pool3d(
        pooled.transpose(0, 1) / 255, (RATE * (len(frames) // FPS), SIDE, SIDE)
    )
    sound = torch.as_tensor(np.asarray(media.audio)).float()
    mel = log_mel(sound[None])[0].mean(0, keepdim=True).clamp(min=SILENCE)
    bands = functional.adaptive_avg_pool2d(mel, (RATE * (sound.shape[-1] // SAMPLE_RATE), BANDS))
    return Pair(cells - cells.median(1, keepdim=True).values, bands).map(
        lambda x: x.flatten().numpy()
    )


@dataclass(frozen=True)
class NearestNeighbours:
    """For each of M clips: the distance ``[M]`` to its nearest training clip, that clip's index ``[M]``, and the distance over
    the mean distance ``[M]`` to its ten nearest. Clips lie closer together in some places than in others: only what is much
    nearer to one training clip than to those around it is a copy."""

    distance: Array
    index: NDArray[np.int64]
    share: Array


@dataclass(frozen=True)
class TrainingClips:
    """Training clips, with their descriptors ``[N, D]`` side by side; either stream's has a total variance of 1."""

    clips: Clips
    rows: Array
    unit: Pair[float]

    @classmethod
    def collect(cls, clips: Clips, folder: Path) -> TrainingClips:
        """Describe every clip and keep the result in ``folder``; if that exists, no clip is read."""
        from tqdm import tqdm

        if not folder.exists():
            with atomic_dir(folder) as partial:
                bar = tqdm(
                    clips.read(),
                    "train",
                    total=len(clips.captions),
                    unit="clip",
                    dynamic_ncols=True,
                )
                save_pair(stack([clip_descriptor(media) for media in bar]), partial / DESCRIPTORS)
        found = load_pair(folder / DESCRIPTORS)
        unit = found.map(lambda x: float(np.sqrt(max(x.var(0).sum(), LEAST))))
        return cls(clips, _joined(found, unit), unit)

    def nearest(self, descriptors: Pair[Array]) -> NearestNeighbours:
        """Look for the nearest training clips of the clips described by ``[M, Dv]`` and ``[M, Da]``."""
        from scipy.spatial.distance import cdist

        apart = cdist(_joined(descriptors, self.unit), self.rows)
        distance = apart.min(1)
        around = np.sort(apart, 1)[:, :NEIGHBOURS].mean(1)
        return NearestNeighbours(distance, apart.argmin(1), distance / np.maximum(around, LEAST))


def stack(descriptors: list[Pair[Array]]) -> Pair[Array]:
    """Descriptors of clips as rows of one array per stream."""
    return Pair(*(np.stack(stream) for stream in zip(*descriptors, strict=True)))


def _joined(descriptors: Pair[Array], unit: Pair[float]) -> Array:
    return np.concatenate(list(descriptors.map(lambda x, u: x / u, unit)), 1)


def threshold(heldout: NearestNeighbours) -> float:
    """Below which share of the mean distance to its ten nearest training clips a clip is a copy of the nearest: half, or the
    least share of a real held-out clip if that is less."""
    return min(COPY, float(heldout.share.min()))


def memorisation(found: NearestNeighbours, heldout: NearestNeighbours) -> dict[str, float]:
    """Two figures of one model's clips, against real held-out clips.

    ``nearest_train`` is the median distance to the nearest training clip over that of held-out clips: 1 is as far from the
    training set as new real clips, 0 is copies. Blurred and empty clips lie nearer than real ones too: compare with the
    codec's. ``memorised_share`` is the share of clips nearer than ``threshold``: of new real clips at most 1 in
    ``len(heldout) + 1``.
    """
    middle = max(float(np.median(heldout.distance)), LEAST)
    return {
        "nearest_train": float(np.median(found.distance)) / middle,
        "memorised_share": float(np.mean(found.share < threshold(heldout))),
    }
