"""What the pocket world's picture and sound show: impacts seen and heard, balls present, their colours, their tones.

The detectors know the world (saturated balls on grey; a tone per colour) but never the truth of a clip, and were fixed on
real clips before any model was measured. Distances scale with the picture's height.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.pocket.synthetic import COLOURS, RADII

Array = NDArray[np.float64]

EDGE = 0.1  # seconds at either end of a clip in which no event counts
SATURATION = 50  # of 255, max - min over the channels
LEAST_AREA = 0.3  # of a disc of the smallest radius: less shows no place
LARGEST_AREA = 1.8  # of a disc of the largest radius: more is not a ball
LARGEST_SPREAD = 2.0  # rms distance from the centre, against that of a disc of the same area
SPEED = 12 / 64  # heights per second, the least on both sides of an impact
FIT = 3  # frames per straight line
SUPPRESS = 5  # frames
CLAMP = 2  # frames that the crossing may lie away from the border between the lines

ENVELOPE = SAMPLE_RATE // 200  # samples: 5 ms
RISE = 0.7  # natural log, within RISE_FRAMES
RISE_FRAMES = 4
LEVEL = 0.06
DEAD_TIME = 0.150  # seconds
TONE_DELAY = SAMPLE_RATE // 200  # past the click
TONE_WINDOW = SAMPLE_RATE // 8


@dataclass(frozen=True)
class VideoEvents:
    """Impact times in seconds (ascending), whether every expected ball is there per frame, and the colours seen."""

    impacts: list[float]
    present: list[bool]
    colours: list[str]


@dataclass(frozen=True)
class AudioEvents:
    """Impact times in seconds (ascending) and, for each, the colour whose tone it is."""

    impacts: list[float]
    colours: list[str]


def colours_in(caption: str) -> list[str]:
    """The colours of the pocket world's balls that a caption names, in its order; none for captions of other worlds."""
    return re.findall(rf"\b({'|'.join(COLOURS)}) ball\b", caption.lower())


def detect_video_events(frames: ArrayLike, balls: int = 1) -> VideoEvents:
    """Look at ``frames`` uint8 ``[T, H, W, 3]`` that should show ``balls`` balls of different colours."""
    pixels = np.asarray(frames)
    saturation = (pixels.max(-1) - pixels.min(-1)).astype(np.float64)
    saturation[saturation <= SATURATION] = 0
    owner = _nearest_hue(pixels)
    mass = [float(saturation[owner == colour].sum()) for colour in range(len(COLOURS))]
    largest = sorted(range(len(COLOURS)), key=lambda colour: -mass[colour])[:balls]
    # One ball is all that is saturated, whatever its hue does; several can only be told apart by hue.
    masks = (
        [saturation]
        if balls == 1
        else [np.where(owner == colour, saturation, 0) for colour in largest]
    )
    tracks = [_track(mask) for mask in masks]
    height = pixels.shape[1]
    impacts = sorted(time for centres, _ in tracks for time in _impacts(centres / height))
    present = np.all([there for _, there in tracks], axis=0)
    shown = [
        list(COLOURS)[colour]
        for colour, (centres, _) in zip(largest, tracks, strict=True)
        if np.isfinite(centres).any()
    ]
    return VideoEvents(_inside(impacts, (len(pixels) - 1) / FPS), present.tolist(), shown)


def detect_audio_events(samples: ArrayLike) -> AudioEvents:
    """Listen to ``samples`` float ``[2, N]`` at 16 kHz."""
    sound = np.asarray(samples, dtype=np.float64)
    impacts = _inside(_onsets(sound), sound.shape[-1] / SAMPLE_RATE)
    return AudioEvents(impacts, [_tone(sound.mean(0), time) for time in impacts])


def _inside(times: list[float], seconds: float) -> list[float]:
    return [time for time in times if EDGE <= time <= seconds - EDGE]


# --- picture ----------------------------------------------------------------------------------------------------------


def _chroma(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """The hue's direction times the saturation, ``[..., 2]``: grey is the origin."""
    red, green, blue = np.moveaxis(rgb.astype(np.float32), -1, 0)
    return np.stack([2 * red - green - blue, np.sqrt(np.float32(3)) * (green - blue)], -1)


def _nearest_hue(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For every pixel the index in COLOURS of the nearest hue."""
    hues = _chroma(np.array([rgb for rgb, _ in COLOURS.values()]))
    return np.argmax(_chroma(pixels) @ (hues / np.linalg.norm(hues, axis=1, keepdims=True)).T, -1)


def _track(weight: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Centre (x, y) in pixels per frame ``[T, 2]`` (NaN where there is next to nothing), and where one compact ball is.

    ``weight`` ``[T, H, W]`` is the saturation of the ball's pixels, 0 elsewhere.
    """
    height, width = weight.shape[1:]
    smallest_disc, largest_disc = np.pi * (np.array(RADII) * height) ** 2
    area = (weight > 0).sum((1, 2))
    total = np.where(area >= LEAST_AREA * smallest_disc, weight.sum((1, 2)), np.nan)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    by_row, by_column = weight.sum(2), weight.sum(1)
    x, y = by_column @ columns / total, by_row @ rows / total
    spread = (by_column @ columns**2 + by_row @ rows**2) / total - x**2 - y**2
    compact = spread <= LARGEST_SPREAD**2 * area / (
        2 * np.pi
    )  # a disc's mean squared distance is area / 2 pi
    return np.stack([x, y], 1), compact & (area <= LARGEST_AREA * largest_disc)


def _impacts(centres: Array) -> list[float]:
    """Times in seconds at which a track (in heights, ``[T, 2]``) turns: down to up, or sideways either way."""
    if len(centres) < 2 * FIT:
        return []
    offsets = np.arange(FIT) - (FIT - 1) / 2
    windows = np.lib.stride_tricks.sliding_window_view(centres, FIT, axis=0)  # [T-2, 2, 3]
    slope, middle = windows @ offsets / (offsets @ offsets), windows.mean(-1)
    before, after = slope[:-FIT], slope[FIT:]
    with np.errstate(invalid="ignore", divide="ignore"):
        turns = before * after < 0
        turns[:, 1] &= before[:, 1] > 0
        strength = np.where(turns, np.minimum(abs(before), abs(after)), 0.0) * FPS
        # Both lines in frames from the border between their windows, where they are FIT / 2 away from their middles.
        crossing = (middle[FIT:] - middle[:-FIT] - (before + after) * FIT / 2) / (before - after)
    borders = np.arange(len(before)) + FIT - 0.5
    axis = strength.argmax(1)
    best = np.take_along_axis(strength, axis[:, None], 1)[:, 0]
    shift = np.clip(np.take_along_axis(crossing, axis[:, None], 1)[:, 0], -CLAMP, CLAMP)
    return [float((borders[k] + shift[k]) / FPS) for k in _peaks(best)]


def _peaks(strength: Array) -> list[int]:
    """Borders over the least speed, strongest first, none within SUPPRESS frames of a stronger one; in time's order."""
    kept: list[int] = []
    for k in np.argsort(-strength, kind="stable"):
        if strength[k] > SPEED and all(abs(int(k) - other) > SUPPRESS for other in kept):
            kept.append(int(k))
    return sorted(kept)


# --- sound ------------------------------------------------------------------------------------------------------------


def _onsets(sound: Array) -> list[float]:
    """Times in seconds at which the 5 ms envelope of ``sound`` ``[2, N]`` rises steeply to an audible level."""
    pieces = sound[:, : sound.shape[1] // ENVELOPE * ENVELOPE].reshape(len(sound), -1, ENVELOPE)
    envelope = np.sqrt((pieces**2).mean((0, 2)))
    logs = np.log(envelope + 1e-4)
    earlier = np.concatenate([np.full(RISE_FRAMES, logs[:1].sum()), logs[:-RISE_FRAMES]])[
        : len(logs)
    ]
    onsets: list[float] = []
    for k in np.flatnonzero((logs - earlier > RISE) & (envelope > LEVEL)):
        time = float((k + 0.5) * ENVELOPE / SAMPLE_RATE)
        if not onsets or time - onsets[-1] > DEAD_TIME:
            onsets.append(time)
    return onsets


def _tone(mono: Array, time: float) -> str:
    """The colour whose tone is nearest, in octaves, to the spectrum's peak after an onset of ``mono`` ``[N]``."""
    names, tones = list(COLOURS), np.array([hertz for _, hertz in COLOURS.values()])
    first = round(time * SAMPLE_RATE) + TONE_DELAY
    window = mono[first : first + TONE_WINDOW]
    size = 4 * TONE_WINDOW
    spectrum = np.abs(np.fft.rfft(window * np.hanning(len(window)), size))
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    heard = (frequencies > 0.8 * tones.min()) & (frequencies < 1.25 * tones.max())
    peak = frequencies[heard][spectrum[heard].argmax()]
    return names[int(np.abs(np.log(tones / peak)).argmin())]
