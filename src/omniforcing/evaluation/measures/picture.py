"""Measures of the picture alone: what is wrong with it, whatever it shows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from omniforcing.evaluation.measures.base import MeanOfClips
from omniforcing.evaluation.measures.clips import Clip

CELLS = 16  # cells of the picture along either side, in which frames are compared
# Difference of a cell, in levels of 255, below which it repeats the last frame: an encoder's noise.
SAME = 2.0


class FrozenShare(MeanOfClips):
    """Share of frames that repeat the one before."""

    name = "frozen_share"
    asks = "of 2 frames or more"
    protocol = (
        f"24 fps; no colour of any of {CELLS}x{CELLS} cells changes by {SAME:g} of 255, so that a "
        "small thing that moves is seen"
    )

    def observe(self, clip: Clip) -> float | None:
        frames = clip.media.video
        if len(frames) < 2:
            return None
        cells = torch.cat([_cells(part) for part in np.array_split(frames, 1 + len(frames) // 64)])
        return float((cells.diff(dim=0).abs().amax((1, 2, 3)) < SAME).float().mean())


def _cells(frames: NDArray[np.uint8]) -> Tensor:
    """Mean colour of each cell ``[T, 3, 16, 16]``; what does not fill a cell is left out."""
    size = [max(1, length // CELLS) for length in frames.shape[1:3]]
    pixels = torch.as_tensor(frames).permute(0, 3, 1, 2).float()
    return functional.avg_pool2d(pixels.contiguous(), size)


class Motion(MeanOfClips):
    """Mean difference between frames: how much moves. Read sync and flicker beside it."""

    name = "motion"
    asks = "of 2 frames or more"
    unit = "levels"
    protocol = "24 fps; mean absolute luma difference of neighbouring frames, of 255"

    def observe(self, clip: Clip) -> float | None:
        return float(np.abs(np.diff(clip.luma, axis=0)).mean()) if len(clip.luma) > 1 else None


class Flicker(MeanOfClips):
    """Brightness of whole frames that goes up and down from frame to frame."""

    name = "flicker"
    asks = "of 3 frames or more"
    unit = "levels"
    protocol = "24 fps; median absolute second difference of mean luma, of 255"

    def observe(self, clip: Clip) -> float | None:
        brightness = clip.luma.mean((1, 2))
        # The median: a cut is one large step, and no flicker.
        return float(np.median(np.abs(np.diff(brightness, 2)))) if len(brightness) > 2 else None
