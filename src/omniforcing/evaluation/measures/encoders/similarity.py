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
from omniforcing.evaluation.measures.encoders.perception import PerceptionEncoder
from omniforcing.evaluation.measures.encoders.weights import WithWeights

PE_AV = "Apache-2.0 (facebook/pe-av-small)"


class ClipTextVideo(WithWeights, MeanOfClips):
    """Cosine of caption and frames, by CLIP."""

    name = "clip_text_video"
    asks = "with a caption"
    protocol = f"CLIP; mean cosine of the caption and {CLIP_FRAMES} frames, evenly spaced"
    encoder_kind = ClipEncoder
    licence = "not verified: openai/clip-vit-base-patch32 states none, its code is MIT"

    def observe(self, clip: Clip) -> float | None:
        if not clip.caption:
            return None
        return float((self.encoder.frames(clip) @ self.encoder.text(clip.caption)).mean())


class ClapTextAudio(WithWeights, MeanOfClips):
    """Cosine of caption and sound, by CLAP."""

    name = "clap_text_audio"
    asks = "with a caption"
    protocol = "CLAP; cosine of the caption and the sound, 48 kHz mono, at most 10 s"
    encoder_kind = ClapEncoder
    licence = "Apache-2.0 (laion/clap-htsat-unfused)"

    def observe(self, clip: Clip) -> float | None:
        if not clip.caption:
            return None
        return float(self.encoder.sound(clip) @ self.encoder.text(clip.caption))


class PeTextVideo(WithWeights, MeanOfClips):
    """Cosine of caption and picture, by PE-AV."""

    name = "pe_text_video"
    asks = "with a caption"
    protocol = "PE-AV; cosine of the caption and the picture, frames as the weights' settings say"
    encoder_kind = PerceptionEncoder
    licence = PE_AV

    def observe(self, clip: Clip) -> float | None:
        if not clip.caption:
            return None
        return float(self.encoder.picture(clip) @ self.encoder.video_text(clip.caption))


class PeTextAudio(WithWeights, MeanOfClips):
    """Cosine of caption and sound, by PE-AV."""

    name = "pe_text_audio"
    asks = "with a caption"
    protocol = "PE-AV; cosine of the caption and the sound, 48 kHz mono"
    encoder_kind = PerceptionEncoder
    licence = PE_AV

    def observe(self, clip: Clip) -> float | None:
        if not clip.caption:
            return None
        sound = self.encoder.sound(clip.media.audio.mean(0)[None])[0]
        return float(sound @ self.encoder.sound_text(clip.caption))


class DinoSubject(WithWeights, MeanOfClips):
    """Subject consistency by DINOv2: how alike each frame is to the first and to the one before.

    The formula is VBench's, its backbone is not: not to be compared with VBench's figures.
    """

    name = "dinov2_subject"
    asks = "of 2 frames or more"
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
