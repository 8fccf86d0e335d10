"""Measures of one clip with an encoder: its caption, and its subject."""

from __future__ import annotations

import numpy as np

from omniforcing.evaluation.measures.base import MeanOfClips
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.models import (
    CLIP_FRAMES,
    DINO_RATE,
    ClapEncoder,
    ClipEncoder,
    DinoEncoder,
)
from omniforcing.evaluation.measures.encoders.weights import WithWeights


class ClipTextVideo(WithWeights, MeanOfClips):
    """Cosine of caption and frames, by CLIP."""

    name = "clip_text_video"
    protocol = f"CLIP; mean cosine of the caption and {CLIP_FRAMES} frames, evenly spaced"
    encoder_kind = ClipEncoder
    licence = "MIT (openai/clip-vit-base-patch32)"

    def observe(self, clip: Clip) -> float | None:
        if not clip.caption:
            return None
        return float((self.encoder.frames(clip) @ self.encoder.text(clip.caption)).mean())


class ClapTextAudio(WithWeights, MeanOfClips):
    """Cosine of caption and sound, by CLAP."""

    name = "clap_text_audio"
    protocol = "CLAP; cosine of the caption and the sound, 48 kHz mono, at most 10 s"
    encoder_kind = ClapEncoder
    licence = "Apache-2.0 (laion/clap-htsat-unfused)"

    def observe(self, clip: Clip) -> float | None:
        if not clip.caption:
            return None
        return float(self.encoder.sound(clip) @ self.encoder.text(clip.caption))


class DinoSubject(WithWeights, MeanOfClips):
    """Subject consistency by DINOv2: how alike each frame is to the first and to the one before.

    The formula is VBench's, its backbone is not: not to be compared with VBench's figures.
    """

    name = "dinov2_subject"
    protocol = (
        f"DINOv2; {DINO_RATE} frames per second, mean of the cosines with the first frame and with "
        "the one before"
    )
    encoder_kind = DinoEncoder
    licence = "Apache-2.0 (facebook/dinov2-base)"

    def observe(self, clip: Clip) -> float | None:
        features = self.encoder.frames(clip)
        if len(features) < 2:
            return None
        first, before = features[1:] @ features[0], (features[1:] * features[:-1]).sum(1)
        return float(np.maximum(0, (first + before) / 2).mean())
