"""How much moves, by optical flow."""

from __future__ import annotations

import numpy as np

from omniforcing.core.layout import FPS
from omniforcing.evaluation.measures.base import MeanOfClips
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.programs import FlowProgram
from omniforcing.evaluation.measures.encoders.weights import WithWeights

RATE = 8  # frames per second
FASTEST = 0.05  # share of the pixels that counts: those that move most
# A clip of 16 frames is dynamic if the fastest pixels of 4 move by 6 pixels of a 256-pixel picture.
MOVES, SIDE, OF_FRAMES, FRAMES = 6.0, 256, 4, 16


class DynamicDegree(WithWeights, MeanOfClips):
    """Share of clips that move, by VBench's formula. Read DeSync beside it."""

    name = "dynamic_degree_raft"
    asks = "of 2 frames or more"
    protocol = (
        f"optical flow, {RATE} frames per second; a clip counts if the fastest "
        f"{100 * FASTEST:g} % of pixels move by {MOVES:g}/{SIDE} of the short side in a quarter of "
        "its frames"
    )
    encoder_kind = FlowProgram
    licence = "of the file, not verified (RAFT's code: BSD-3-Clause)"

    def observe(self, clip: Clip) -> float | None:
        frames = clip.media.video[:: FPS // RATE]
        if len(frames) < 2:
            return None
        threshold = MOVES * min(frames.shape[1:3]) / SIDE
        moving = sum(fastest(flow) > threshold for flow in self.encoder.flow(frames))
        return float(moving >= round(OF_FRAMES * len(frames) / FRAMES))


def fastest(flow: np.ndarray) -> float:
    """Mean length of the longest 5 % of the vectors of a flow ``[2, H, W]``, in pixels."""
    lengths = np.sort(np.hypot(*flow), axis=None)
    return float(lengths[-max(1, int(FASTEST * lengths.size)) :].mean())
