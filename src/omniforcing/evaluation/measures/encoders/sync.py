"""Measures of picture and sound together, with encoders."""

from __future__ import annotations

from typing import Any

import numpy as np

from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.core.pair import Pair
from omniforcing.evaluation.measures.base import MeanOfClips
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.perception import PerceptionEncoder
from omniforcing.evaluation.measures.encoders.programs import (
    SYNC_SECONDS,
    PairProgram,
    SynchformerProgram,
)
from omniforcing.evaluation.measures.encoders.similarity import PE_AV
from omniforcing.evaluation.measures.encoders.weights import WithWeights

WINDOW, STEP = 2.0, 0.5  # seconds of JavisScore's windows, and between their starts
LOWEST = 0.4  # share of a window's frames that counts: those that fit the sound least
JAVIS = (
    f"windows of {WINDOW:g} s, {STEP:g} s apart: mean of the lowest {100 * LOWEST:g} % of frames' "
    "cosines with the window's sound"
)


class DesyncFirstLast(WithWeights, MeanOfClips):
    """DeSync as av-benchmark samples it. A frozen picture scores best: read it beside `motion`."""

    name = "desync_synchformer_first_last"
    asks = f"of {SYNC_SECONDS:g} s or more"
    unit = "s"
    protocol = "Synchformer; mean absolute offset of the first and the last 4.8 s"
    encoder_kind = SynchformerProgram
    licence = "not verified (Synchformer 24-01-04T16-39-21)"

    def observe(self, clip: Clip) -> float | None:
        last = clip.seconds - SYNC_SECONDS
        if last < 0:
            return None
        return float(np.mean([abs(self.encoder.offset(clip, at)) for at in (0.0, last)]))


class DesyncAllWindows(DesyncFirstLast):
    """DeSync as JavisBench samples it."""

    name = "desync_synchformer_all_windows"
    asks = ""
    protocol = "Synchformer; mean absolute offset of each 4.8 s, shorter clips are repeated"

    def observe(self, clip: Clip) -> float | None:
        whole = _repeated(clip)
        starts = np.arange(0, whole.seconds - SYNC_SECONDS + 1e-6, SYNC_SECONDS)
        return float(np.mean([abs(self.encoder.offset(whole, float(at))) for at in starts]))


def _repeated(clip: Clip) -> Clip:
    """The clip, repeated until it lasts long enough."""
    times = int(np.ceil(SYNC_SECONDS / clip.seconds))
    if times == 1:
        return clip
    frames = np.concatenate([clip.media.video[:-1]] * times)
    return Clip(clip.name, Pair(frames, np.tile(clip.media.audio, times)), clip.caption)


class AvPair(WithWeights, MeanOfClips):
    """Likeness of picture and sound by a pair encoder; AV-IB with ImageBind."""

    name = "av_pair"
    protocol = "pair encoder; cosine of the mean of all frames and the whole sound"
    encoder_kind: type[Any] = PairProgram
    licence = "of the program (ImageBind: CC BY-NC-SA 4.0)"

    def observe(self, clip: Clip) -> float | None:
        mean = self.encoder.frames(clip).mean(0)
        sound = self.encoder.sound(clip.media.audio.mean(0)[None])[0]
        return float(mean @ sound / max(float(np.linalg.norm(mean)), 1e-9))


class JavisPair(AvPair):
    """JavisScore over a pair encoder."""

    name = "javis_pair"
    asks = f"of {WINDOW:g} s or more"
    protocol = f"pair encoder; {JAVIS}"

    def observe(self, clip: Clip) -> float | None:
        starts = np.arange(0, clip.seconds - WINDOW + 1e-6, STEP)
        if not len(starts):
            return None
        mono = clip.media.audio.mean(0)
        count = round(WINDOW * SAMPLE_RATE)
        pieces = [mono[round(at * SAMPLE_RATE) :][:count] for at in starts]
        frames, sounds = self.encoder.frames(clip), self.encoder.sound(np.stack(pieces))
        scores = []
        for at, sound in zip(starts, sounds, strict=True):
            first = round(at * FPS)
            scores.append(lowest_mean(frames[first : first + round(WINDOW * FPS)] @ sound))
        return float(np.mean(scores))


class PeAudioVideo(WithWeights, MeanOfClips):
    """Likeness of picture and sound by PE-AV."""

    name = "pe_audio_video"
    protocol = "PE-AV; cosine of the picture, frames as the weights' settings say, and the sound"
    encoder_kind = PerceptionEncoder
    licence = PE_AV

    def observe(self, clip: Clip) -> float | None:
        sound = self.encoder.sound(clip.media.audio.mean(0)[None])[0]
        return float(self.encoder.picture(clip) @ sound)


class JavisPe(JavisPair):
    """JavisScore over PE-AV: not to be compared with published figures, which use ImageBind."""

    name = "javis_pe"
    protocol = f"PE-AV, each frame as a video of its own; {JAVIS}"
    encoder_kind = PerceptionEncoder
    licence = PE_AV


def lowest_mean(cosines: np.ndarray) -> float:
    """Mean of the lowest 40 % of cosines, at least one."""
    count = max(1, int(LOWEST * len(cosines)))
    return float(np.sort(cosines)[:count].mean())
