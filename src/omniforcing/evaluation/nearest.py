"""Memorisation: distance of clips to their nearest training clip, against that of new real clips.

Distances are between descriptors of the media alone, so any two clips of one length compare. Of the
picture a descriptor holds what moves, coarsely: size, place and time of a ball count, the still
background does not. Of the sound it holds loud bands: slight hiss does not count. A copy of a
training clip that went through the pocket codec lies at about a third of the distance of a new real
clip.
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
from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.core.pair import Media, Pair
from omniforcing.media.mel import log_mel
from omniforcing.pocket.observe import DESCRIPTORS, Clips, load_pair, save_pair

Array = NDArray[np.floating[Any]]

DESCRIPTOR = "motion-8x8x6fps+mel16-v1"
RATE = 6  # values per second of picture and sound
SIDE = 8  # cells along either side of the picture
BANDS = 16  # frequency bands of the sound
# Natural log. An impact's loudest bands reach 0; noise 35 dB below them is taken for silence.
SILENCE = -4.0
NEIGHBOURS = 10  # nearest training clips that say how densely clips lie around a clip
COPY = 0.5  # share of the mean distance to those: nearer clips are copies
FRAMES = 4  # frames held as floats at once
LEAST = 1e-6  # least variance or distance that divides


def clip_descriptor(media: Media) -> Pair[Array]:
    """Describe one clip of K whole seconds.

    The picture is averaged over cells and time, less each cell's median over the clip; the sound is
    log-mel, averaged over bands and time.

    Args:
        media: frames uint8 ``[1+24K, H, W, 3]`` and samples float ``[2, 16000K]``.

    Returns:
        Descriptors float32, ``[6K * 8 * 8 * 3]`` of the picture and ``[6K * 16]`` of the sound.
    """
    frames = torch.as_tensor(np.asarray(media.video))
    pooled = torch.empty(len(frames), 3, SIDE, SIDE)
    # A long clip of real size does not fit into memory as floats.
    for some, place in zip(frames.split(FRAMES), pooled.split(FRAMES), strict=True):
        place.copy_(functional.adaptive_avg_pool2d(some.permute(0, 3, 1, 2).float(), SIDE))
    size = RATE * (len(frames) // FPS), SIDE, SIDE
    cells = functional.adaptive_avg_pool3d(pooled.transpose(0, 1) / 255, size)
    sound = torch.as_tensor(np.asarray(media.audio)).float()
    mel = log_mel(sound[None])[0].mean(0, keepdim=True).clamp(min=SILENCE)
    bands = functional.adaptive_avg_pool2d(mel, (RATE * (sound.shape[-1] // SAMPLE_RATE), BANDS))
    moving = cells - cells.median(1, keepdim=True).values
    return Pair(moving, bands).map(lambda x: x.flatten().numpy())


@dataclass(frozen=True)
class NearestNeighbours:
    """Nearest training clip of each of M clips.

    Clips lie closer together in some places than in others. So a clip is a copy only if it is much
    nearer to one training clip than to those around it, which ``share`` tells.

    Attributes:
        distance: distance to the nearest training clip ``[M]``.
        index: index of that clip ``[M]``.
        share: the distance over the mean distance to the ten nearest ``[M]``.
    """

    distance: Array
    index: NDArray[np.int64]
    share: Array


@dataclass(frozen=True)
class TrainingClips:
    """Training clips and their descriptors.

    Attributes:
        clips: the clips.
        rows: descriptors of picture and sound side by side ``[N, D]``, each of total variance 1.
        unit: standard deviation by which each was divided.
    """

    clips: Clips
    rows: Array
    unit: Pair[float]

    @classmethod
    def collect(cls, clips: Clips, folder: Path) -> TrainingClips:
        """Describe every clip and keep the result in ``folder``, or read it if it is there.

        Args:
            clips: the training clips.
            folder: folder to write, whole or not at all.
        """
        from tqdm import tqdm

        if not folder.exists():
            count = len(clips.captions)
            with atomic_dir(folder) as unfinished:
                bar = tqdm(clips.read(), "train", total=count, unit="clip", dynamic_ncols=True)
                rows = stack([clip_descriptor(media) for media in bar])
                save_pair(rows, unfinished / DESCRIPTORS)
        descriptors = load_pair(folder / DESCRIPTORS)
        # Picture and sound count alike, however many values describe either.
        unit = descriptors.map(lambda x: float(np.sqrt(max(x.var(0).sum(), LEAST))))
        return cls(clips, _joined(descriptors, unit), unit)

    def nearest(self, descriptors: Pair[Array]) -> NearestNeighbours:
        """Find the nearest training clip of each clip.

        Args:
            descriptors: descriptors of M clips, ``[M, Dv]`` and ``[M, Da]``.
        """
        from scipy.spatial.distance import cdist

        apart = cdist(_joined(descriptors, self.unit), self.rows)
        distance = apart.min(1)
        around = np.sort(apart, 1)[:, :NEIGHBOURS].mean(1)
        return NearestNeighbours(distance, apart.argmin(1), distance / np.maximum(around, LEAST))


def stack(descriptors: list[Pair[Array]]) -> Pair[Array]:
    """Stack descriptors of clips as rows of one array for picture and sound each."""
    return Pair(*(np.stack(stream) for stream in zip(*descriptors, strict=True)))


def _joined(descriptors: Pair[Array], unit: Pair[float]) -> Array:
    return np.concatenate(list(descriptors.map(lambda x, u: x / u, unit)), 1)


def threshold(heldout: NearestNeighbours) -> float:
    """Return the ``share`` below which a clip is a copy: half, or the least of real clips if less.

    Args:
        heldout: neighbours of real held-out clips.
    """
    return min(COPY, float(heldout.share.min()))


def memorisation(model: NearestNeighbours, heldout: NearestNeighbours) -> dict[str, float]:
    """Measure how far a model's clips are copies of training clips.

    Args:
        model: neighbours of the model's clips.
        heldout: neighbours of real held-out clips.

    Returns:
        ``nearest_train``, the median distance to the nearest training clip over that of held-out
        clips: 1 is as far as new real clips, 0 is copies. Blurred and empty clips lie nearer too:
        compare with the codec's. ``memorised_share``, the share of clips below ``threshold``: of
        new real clips at most 1 in ``len(heldout) + 1``.
    """
    middle = max(float(np.median(heldout.distance)), LEAST)
    return {
        "nearest_train": float(np.median(model.distance)) / middle,
        "memorised_share": float(np.mean(model.share < threshold(heldout))),
    }
