"""Measures of one clip with an encoder: its caption, and its subject."""

from __future__ import annotations

from abc import abstractmethod

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


class CaptionLikeness(WithWeights, MeanOfClips):
    """Cosine of a clip's caption with its picture or sound."""

    asks = "with a caption"

    def observe(self, clip: Clip) -> float | None:
        return self.cosine(clip) if clip.caption else None

    @abstractmethod
    def cosine(self, clip: Clip) -> float:
        """Return the cosine for a clip that has a caption."""


class ClipTextVideo(CaptionLikeness):
    """Cosine of caption and frames, by CLIP."""

    name = "clip_text_video"
    protocol = f"CLIP; mean cosine of the caption and {CLIP_FRAMES} frames, evenly spaced"
    encoder_kind = ClipEncoder
    licence = "not verified: openai/clip-vit-base-patch32 states none, its code is MIT"

    def cosine(self, clip: Clip) -> float:
        return float((self.encoder.frames(clip) @ self.encoder.text(clip.caption)).mean())


class ClapTextAudio(CaptionLikeness):
    """Cosine of caption and sound, by CLAP."""

    name = "clap_text_audio"
    protocol = "CLAP; cosine of the caption and the sound, 48 kHz mono, at most 10 s"
    encoder_kind = ClapEncoder
    licence = "Apache-2.0 (laion/clap-htsat-unfused)"

    def cosine(self, clip: Clip) -> float:
        return float(self.encoder.sound(clip) @ self.encoder.text(clip.caption))


class PeTextVideo(CaptionLikeness):
    """Cosine of caption and picture, by PE-AV."""

    name = "pe_text_video"
    protocol = "PE-AV; cosine of the caption and the picture, frames as the weights' settings say"
    encoder_kind = PerceptionEncoder
    licence = PE_AV

    def cosine(self, clip: Clip) -> float:
        return float(self.encoder.picture(clip) @ self.encoder.video_text(clip.caption))


class PeTextAudio(CaptionLikeness):
    """Cosine of caption and sound, by PE-AV."""

    name = "pe_text_audio"
    protocol = "PE-AV; cosine of the caption and the sound, 48 kHz mono"
    encoder_kind = PerceptionEncoder
    licence = PE_AV

    def cosine(self, clip: Clip) -> float:
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
