"""Measures of the sound alone: what is wrong with it, whatever is heard."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.evaluation.measures.base import MeanOfClips
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.curves import Array

PIECE = SAMPLE_RATE // 20  # samples of a piece: 50 ms
GATE = -70.0  # LUFS of the standard's absolute gate
SILENT = -60.0  # dBFS below which a piece is silent
FULL = 0.999  # of full scale
RUN = 3  # samples in a row at full scale: a wave's own top may touch it
BAND = (200.0, 7000.0)  # Hz in which noise and tones are told apart


class Loudness(MeanOfClips):
    """Integrated loudness after ITU-R BS.1770-4; silent clips have none."""

    name = "loudness"
    asks = "that are not silent"
    unit = "LUFS"
    has_ratio = False
    protocol = "ITU-R BS.1770-4 by FFmpeg's ebur128, at 16 kHz stereo; mean over clips"

    def observe(self, clip: Clip) -> float | None:
        value = _integrated_loudness(np.asarray(clip.media.audio, np.float32))
        return value if value > GATE else None


def _integrated_loudness(samples: NDArray[np.float32]) -> float:
    """Loudness of sound ``[2, N]`` in LUFS; the gate's where all of it is fainter."""
    import av

    graph, time_base = av.filter.Graph(), Fraction(1, SAMPLE_RATE)
    source = graph.add_abuffer(
        sample_rate=SAMPLE_RATE, format="fltp", layout="stereo", time_base=time_base
    )
    graph.link_nodes(source, graph.add("ebur128", "metadata=1"), graph.add("abuffersink"))
    graph.configure()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", "stereo")
    frame.rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, time_base
    graph.push(frame)
    graph.push(None)
    value = GATE
    # It measures in pieces of 100 ms, and each frame that comes carries the figure so far.
    with suppress(av.EOFError, av.BlockingIOError):
        while True:
            value = float(graph.pull().metadata["lavfi.r128.I"])
    return value


class SilentShare(MeanOfClips):
    """Share of the sound that is silent."""

    name = "silent_share"
    protocol = f"pieces of 50 ms below {SILENT:g} dBFS (rms of both sides)"

    def observe(self, clip: Clip) -> float | None:
        pieces = _pieces(clip)
        return float((np.sqrt((pieces**2).mean(1)) < 10 ** (SILENT / 20)).mean())


class ClippedShare(MeanOfClips):
    """Share of samples that are cut off at full scale."""

    name = "clipped_share"
    protocol = f"{RUN} samples or more in a row at {FULL:g} of full scale"

    def observe(self, clip: Clip) -> float | None:
        full = np.abs(clip.media.audio) >= FULL
        runs = np.lib.stride_tricks.sliding_window_view(full, RUN, 1).all(-1)
        inside = np.zeros_like(full)
        for offset in range(RUN):
            inside[:, offset : offset + runs.shape[1]] |= runs
        return float(inside.mean())


class Flatness(MeanOfClips):
    """Spectral flatness of what is heard: 0 for a pure tone, 1 for white noise.

    A vocoder's metallic ring lowers it, hiss raises it: compare with real clips.
    """

    name = "spectral_flatness"
    asks = "that are not silent"
    protocol = f"median over pieces of 50 ms that are not silent, {BAND[0]:g} to {BAND[1]:g} Hz"

    def observe(self, clip: Clip) -> float | None:
        pieces = _pieces(clip)
        pieces = pieces[np.sqrt((pieces**2).mean(1)) >= 10 ** (SILENT / 20)]
        if not len(pieces):
            return None
        mono = pieces.reshape(len(pieces), 2, PIECE).mean(1)
        power = np.abs(np.fft.rfft(mono * np.hanning(PIECE))) ** 2 + 1e-12
        hertz = np.fft.rfftfreq(PIECE, 1 / SAMPLE_RATE)
        power = power[:, (hertz >= BAND[0]) & (hertz <= BAND[1])]
        return float(np.median(np.exp(np.log(power).mean(1)) / power.mean(1)))


def _pieces(clip: Clip) -> Array:
    """Sound in pieces of 50 ms, both sides one after the other, ``[P, 2 * 800]``."""
    sound = np.asarray(clip.media.audio, np.float64)
    count = sound.shape[1] // PIECE
    parts: Array = sound[:, : count * PIECE].reshape(2, count, PIECE).transpose(1, 0, 2)
    return parts.reshape(count, 2 * PIECE)
