"""Measures of the picture alone: what is wrong with it, whatever it shows."""

from __future__ import annotations

import numpy as np

from omniforcing.evaluation.measures.base import MeanOfClips
from omniforcing.evaluation.measures.clips import Clip

# Mean difference in levels of 255 below which a frame repeats the last one: an encoder's noise.
SAME = 0.25


class FrozenShare(MeanOfClips):
    """Share of frames that repeat the one before."""

    name = "frozen_share"
    protocol = f"24 fps; mean luma difference below {SAME:g} of 255"

    def observe(self, clip: Clip) -> float | None:
        if len(clip.luma) < 2:
            return None
        return float((np.abs(np.diff(clip.luma, axis=0)).mean((1, 2)) < SAME).mean())


class Motion(MeanOfClips):
    """Mean difference between frames: how much moves. Read sync and flicker beside it."""

    name = "motion"
    unit = "levels"
    protocol = "24 fps; mean absolute luma difference of neighbouring frames, of 255"

    def observe(self, clip: Clip) -> float | None:
        return float(np.abs(np.diff(clip.luma, axis=0)).mean()) if len(clip.luma) > 1 else None


class Flicker(MeanOfClips):
    """Brightness of whole frames that goes up and down from frame to frame."""

    name = "flicker"
    unit = "levels"
    protocol = "24 fps; median absolute second difference of mean luma, of 255"

    def observe(self, clip: Clip) -> float | None:
        brightness = clip.luma.mean((1, 2))
        # The median: a cut is one large step, and no flicker.
        return float(np.median(np.abs(np.diff(brightness, 2)))) if len(brightness) > 2 else None
