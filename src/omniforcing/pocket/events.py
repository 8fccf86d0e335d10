"""Detect the events of the pocket world: impacts in picture and sound, balls, colours and tones.

The detectors know the world (saturated balls on grey, a tone per colour) but never the truth of a
clip. They were fixed on rendered clips before any model was measured. Distances are in picture
heights, so that any size gives the same events.
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
SATURATION = 50  # of 255: a pixel with a larger max - min over its channels belongs to a ball
LEAST_AREA = 0.3  # of the smallest ball's area: less has no place
LARGEST_AREA = 1.8  # of the largest ball's area: more is not one ball
LARGEST_SPREAD = 2.0  # rms distance from the centre, in that of a disc of the same area
SPEED = 12 / 64  # heights per second: least speed on both sides of an impact
FIT = 3  # frames to which a straight line is fitted
SUPPRESS = 5  # frames around an impact in which no weaker one counts
CLAMP = 2  # frames by which an impact may lie off the border between its two lines

ENVELOPE = SAMPLE_RATE // 200  # samples per value of the envelope: 5 ms
RISE = 0.7  # natural log: least rise of the envelope at an onset, within RISE_FRAMES values
RISE_FRAMES = 4
LEVEL = 0.06  # least envelope at an onset
DEAD_TIME = 0.150  # seconds after an onset in which no other counts
TONE_DELAY = SAMPLE_RATE // 200  # samples from an onset to where its click is over
TONE_WINDOW = SAMPLE_RATE // 8  # samples from which a tone is measured


@dataclass(frozen=True)
class VideoEvents:
    """Events of a clip's picture.

    Attributes:
        impacts: times in seconds, ascending.
        present: for each frame, whether every expected ball is there.
        colours: colours of the balls that were found.
    """

    impacts: list[float]
    present: list[bool]
    colours: list[str]


@dataclass(frozen=True)
class AudioEvents:
    """Events of a clip's sound.

    Attributes:
        impacts: times in seconds, ascending.
        colours: for each impact, the colour whose tone it has.
    """

    impacts: list[float]
    colours: list[str]


def colours_in(caption: str) -> list[str]:
    """Return the colours of the balls that a caption names, in its order; none of another world."""
    return re.findall(rf"\b({'|'.join(COLOURS)}) ball\b", caption.lower())


def detect_video_events(frames: ArrayLike, balls: int = 1) -> VideoEvents:
    """Detect impacts, balls and colours in a clip's picture.

    Args:
        frames: uint8 ``[T, H, W, 3]`` at 24 fps.
        balls: number of balls, of different colours, that it should show.

    Returns:
        Events of the picture.
    """
    pixels = np.asarray(frames)
    red, green, blue = np.moveaxis(pixels, -1, 0)  # several times as fast as a maximum along it
    largest_value = np.maximum(np.maximum(red, green), blue)
    saturation = (largest_value - np.minimum(np.minimum(red, green), blue)).astype(np.float64)
    saturation[saturation <= SATURATION] = 0
    saturated = saturation > 0
    owner = np.full(saturated.shape, -1)
    owner[saturated] = _nearest_hue(pixels[saturated])
    mass = [float(saturation[owner == colour].sum()) for colour in range(len(COLOURS))]
    largest = sorted(range(len(COLOURS)), key=lambda colour: -mass[colour])[:balls]
    # One ball is all that is saturated, whatever its hue does. Several can only be told apart by
    # hue.
    if balls == 1:
        masks = [saturation]
    else:
        masks = [np.where(owner == colour, saturation, 0) for colour in largest]
    tracks = [_track(mask) for mask in masks]
    height = pixels.shape[1]
    impacts: list[float] = []
    for centres, _ in tracks:
        impacts += _impacts(centres / height)
    present = np.all([there for _, there in tracks], axis=0)
    shown = []
    for colour, (centres, _) in zip(largest, tracks, strict=True):
        if np.isfinite(centres).any():
            shown.append(list(COLOURS)[colour])
    return VideoEvents(_inside(sorted(impacts), (len(pixels) - 1) / FPS), present.tolist(), shown)


def detect_audio_events(samples: ArrayLike) -> AudioEvents:
    """Detect impacts and their tones in a clip's sound.

    Args:
        samples: float ``[2, N]`` at 16 kHz.

    Returns:
        Events of the sound.
    """
    sound = np.asarray(samples, dtype=np.float64)
    impacts = _inside(_onsets(sound), sound.shape[-1] / SAMPLE_RATE)
    return AudioEvents(impacts, [_tone(sound.mean(0), time) for time in impacts])


def _inside(times: list[float], seconds: float) -> list[float]:
    # Near the edge an impact may show in one of picture and sound alone.
    return [time for time in times if EDGE <= time <= seconds - EDGE]


def _chroma(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """Map RGB ``[..., 3]`` to the plane of hue and saturation ``[..., 2]``; grey is the origin."""
    red, green, blue = np.moveaxis(rgb.astype(np.float32), -1, 0)
    return np.stack([2 * red - green - blue, np.sqrt(np.float32(3)) * (green - blue)], -1)


def _nearest_hue(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for every pixel the index in COLOURS of the nearest hue."""
    hues = _chroma(np.array([rgb for rgb, _ in COLOURS.values()]))
    # The largest projection on a unit vector is the smallest angle, at any saturation.
    return np.argmax(_chroma(pixels) @ (hues / np.linalg.norm(hues, axis=1, keepdims=True)).T, -1)


def _track(weight: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Follow one ball.

    Args:
        weight: saturation of the ball's pixels ``[T, H, W]``, 0 elsewhere.

    Returns:
        Its centre (x, y) in pixels per frame ``[T, 2]``, NaN where there is next to nothing, and
        whether one compact ball is there ``[T]``.
    """
    height, width = weight.shape[1:]
    smallest_disc, largest_disc = np.pi * (np.array(RADII) * height) ** 2
    area = (weight > 0).sum((1, 2))
    total = np.where(area >= LEAST_AREA * smallest_disc, weight.sum((1, 2)), np.nan)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    by_row, by_column = weight.sum(2), weight.sum(1)
    # Weighted by saturation, so that a ball's soft edge counts in part: the centre is finer than a
    # pixel.
    x, y = by_column @ columns / total, by_row @ rows / total
    spread = (by_column @ columns**2 + by_row @ rows**2) / total - x**2 - y**2
    # The mean squared distance from a disc's centre is its area over 2 pi.
    compact = spread <= LARGEST_SPREAD**2 * area / (2 * np.pi)
    return np.stack([x, y], 1), compact & (area <= LARGEST_AREA * largest_disc)


def _impacts(centres: Array) -> list[float]:
    """Find the times at which a ball turns: from down to up, or sideways either way.

    A straight line is fitted to ``FIT`` frames before and after every border between two frames. An
    impact lies where two lines of opposite slope cross, which is finer than a frame.

    Args:
        centres: centre (x, y) per frame in picture heights ``[T, 2]``.

    Returns:
        Times in seconds, ascending.
    """
    if len(centres) < 2 * FIT:
        return []
    # Least squares on equal steps: the slope is a weighted sum, the middle of the line is the mean.
    offsets = np.arange(FIT) - (FIT - 1) / 2
    windows = np.lib.stride_tricks.sliding_window_view(centres, FIT, axis=0)  # [T-2, 2, 3]
    slope, middle = windows @ offsets / (offsets @ offsets), windows.mean(-1)
    before, after = slope[:-FIT], slope[FIT:]
    with np.errstate(invalid="ignore", divide="ignore"):
        turns = before * after < 0
        # Down is positive: the top of a flight is no impact.
        turns[:, 1] &= before[:, 1] > 0
        strength = np.where(turns, np.minimum(abs(before), abs(after)), 0.0) * FPS
        # Counted in frames from the border, which lies FIT / 2 from the middle of either line.
        crossing = (middle[FIT:] - middle[:-FIT] - (before + after) * FIT / 2) / (before - after)
    # One candidate per border: the axis along which the ball turns faster.
    borders = np.arange(len(before)) + FIT - 0.5
    axis = strength.argmax(1)
    best = np.take_along_axis(strength, axis[:, None], 1)[:, 0]
    shift = np.clip(np.take_along_axis(crossing, axis[:, None], 1)[:, 0], -CLAMP, CLAMP)
    return [float((borders[k] + shift[k]) / FPS) for k in _peaks(best)]


def _peaks(strength: Array) -> list[int]:
    """Pick borders faster than SPEED, none within SUPPRESS frames of a stronger one; ascending."""
    kept: list[int] = []
    for k in np.argsort(-strength, kind="stable"):
        if strength[k] > SPEED and all(abs(int(k) - other) > SUPPRESS for other in kept):
            kept.append(int(k))
    return sorted(kept)


def _onsets(sound: Array) -> list[float]:
    """Find the times in seconds at which the envelope of ``sound`` ``[2, N]`` rises to LEVEL."""
    pieces = sound[:, : sound.shape[1] // ENVELOPE * ENVELOPE].reshape(len(sound), -1, ENVELOPE)
    envelope = np.sqrt((pieces**2).mean((0, 2)))
    # The rise is a ratio, so that a faint impact counts like a loud one.
    logs = np.log(envelope + 1e-4)
    # Before the clip the envelope is that of its first value; the sum is 0 for no sound at all.
    before = np.full(RISE_FRAMES, logs[:1].sum())
    earlier = np.concatenate([before, logs[:-RISE_FRAMES]])[: len(logs)]
    onsets: list[float] = []
    for k in np.flatnonzero((logs - earlier > RISE) & (envelope > LEVEL)):
        time = float((k + 0.5) * ENVELOPE / SAMPLE_RATE)
        if not onsets or time - onsets[-1] > DEAD_TIME:
            onsets.append(time)
    return onsets


def _tone(mono: Array, time: float) -> str:
    """Return the colour whose tone is nearest, in octaves, to the peak after an onset."""
    names, tones = list(COLOURS), np.array([hertz for _, hertz in COLOURS.values()])
    first = round(time * SAMPLE_RATE) + TONE_DELAY
    window = mono[first : first + TONE_WINDOW]
    size = 4 * TONE_WINDOW  # zero padding: the peak is found on a finer grid
    spectrum = np.abs(np.fft.rfft(window * np.hanning(len(window)), size))
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    # Without what lies below and above all tones: noise and harmonics are no candidates.
    band = (frequencies > 0.8 * tones.min()) & (frequencies < 1.25 * tones.max())
    peak = frequencies[band][spectrum[band].argmax()]
    return names[int(np.abs(np.log(tones / peak)).argmin())]
