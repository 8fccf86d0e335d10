"""Curves over time in which picture and sound can be compared: onsets and changes of motion."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from omniforcing.core.layout import FPS, SAMPLE_RATE

Array = NDArray[np.float64]

# Sound: 16 ms windows, so that an onset is known to some milliseconds.
RATE = 200  # values per second of an onset curve
WINDOW = 256
SILENCE = -7.0  # natural log of the magnitude: what is fainter is silence
RISE = 2  # values over which a rise is taken: 10 ms

HEIGHT = 48  # pixels to which pictures are reduced: a fast motion is then a few pixels a frame
BLUR = 1.5  # pixels, so that the picture is smooth over a frame's motion
CELL = 4  # pixels between places at which motion is estimated, and their width
STILL = 1e-4  # structure below which a place has no motion of its own

LEAST_RISE = 1.0  # standard deviations of a curve above its mean: what is lower is no event
APART = 0.1  # seconds around an event in which no weaker one counts
EDGE = 0.1  # seconds at either end of a clip in which no event counts


def onset_curve(samples: ArrayLike) -> Array:
    """Measure how much the sound begins at each time (spectral flux).

    Args:
        samples: float ``[2, N]`` at 16 kHz.

    Returns:
        Mean rise of the log spectrum over 10 ms, ``[1 + N / 80]``; value i is at i / 200 s.
    """
    sound = torch.as_tensor(np.asarray(samples)).float().mean(0)
    spectrum = torch.stft(
        sound,
        WINDOW,
        SAMPLE_RATE // RATE,
        window=torch.hann_window(WINDOW),
        pad_mode="constant",
        return_complex=True,
    ).abs()
    levels = spectrum.log().clamp(min=SILENCE).T
    rise = (levels[RISE:] - levels[:-RISE]).clamp(min=0).mean(1)
    # The logarithm rises most when the edge of a window meets a sudden sound, one value before the
    # middle does.
    return functional.pad(rise, (RISE // 2 + 1, 0)).double().numpy()


def motion_curve(frames: ArrayLike) -> Array:
    """Measure how much motion changes at each frame: what bounces, stops or starts.

    Motion is estimated at a grid of places by least squares (Lucas and Kanade 1981) and weighted
    by the structure there, so that flat regions count nothing.

    Args:
        frames: uint8 ``[T, H, W, 3]`` at 24 fps.

    Returns:
        Mean change of motion, pixels per frame weighted by structure, ``[T]``.
    """
    pixels = np.asarray(frames)
    if len(pixels) < 3:
        return np.zeros(len(pixels))
    momentum = _momentum(_reduced(pixels))
    change = (momentum[1:] - momentum[:-1]).abs().sum(1).mean((1, 2))
    # A change between the flows into a frame and out of it is at that frame.
    return functional.pad(change, (1, 1)).double().numpy()


def _reduced(pixels: NDArray[np.uint8]) -> Tensor:
    """Reduce and blur frames; float ``[T, 3, h, w]`` in 0 to 1."""
    height, width = pixels.shape[1:3]
    rows = _blurring(HEIGHT, BLUR) @ _shrinking(height, HEIGHT)
    count = max(CELL, round(HEIGHT * width / height))
    columns = _blurring(count, BLUR) @ _shrinking(width, count)
    parts = []
    for first in range(0, len(pixels), 64):  # a long clip is never whole in memory as floats
        part = torch.as_tensor(pixels[first : first + 64]).permute(0, 3, 1, 2).float() / 255
        parts.append(rows @ part @ columns.T)
    return torch.cat(parts)


# A filter along one axis is a matrix product, several times as fast as a small convolution here.


@cache
def _shrinking(size: int, smaller: int) -> Tensor:
    """Matrix ``[smaller, size]`` that averages areas of an axis."""
    return functional.interpolate(torch.eye(size)[:, None], smaller, mode="area")[:, 0].T


@cache
def _blurring(size: int, deviation: float) -> Tensor:
    """Matrix ``[size, size]`` that blurs an axis by a Gaussian; its ends are repeated."""
    reach = round(3 * deviation)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    padded = functional.pad(torch.eye(size)[:, None], (reach, reach), mode="replicate")
    return functional.conv1d(padded, (weights / weights.sum())[None, None])[:, 0].T


def _momentum(x: Tensor) -> Tensor:
    """Motion from each frame to the next times structure, ``[T - 1, 2, h / 4, w / 4]``."""
    down, right = torch.gradient(x, dim=(2, 3))
    down, right = (down[1:] + down[:-1]) / 2, (right[1:] + right[:-1]) / 2
    later = x[1:] - x[:-1]
    products = (right * right, right * down, down * down, right * later, down * later)
    places = slice(CELL // 2, None, CELL)
    rows, columns = (_blurring(size, CELL)[places] for size in x.shape[2:])
    xx, xy, yy, xt, yt = (rows @ product.sum(1) @ columns.T for product in products)
    structure = xx + yy
    xx, yy = xx + STILL, yy + STILL
    determinant = xx * yy - xy**2
    motion = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], 1) / determinant[:, None]
    return motion * structure[:, None]


def events(curve: Array, rate: float) -> list[float]:
    """Find the times of a curve's peaks.

    Args:
        curve: values ``[N]``, ``rate`` a second.
        rate: values per second.

    Returns:
        Times in seconds, ascending, finer than a value.
    """
    from scipy.ndimage import maximum_filter1d

    if not len(curve) or curve.max() <= 0:
        return []
    top = curve == maximum_filter1d(curve, 2 * max(1, round(APART * rate)) + 1)
    top &= curve > curve.mean() + LEAST_RISE * curve.std()
    places = np.flatnonzero(top[1:-1]) + 1
    # A parabola through a peak and its neighbours has its top between the values.
    before, at, after = curve[places - 1], curve[places], curve[places + 1]
    times = (places + 0.5 * (before - after) / (before - 2 * at + after - 1e-12)) / rate
    end = (len(curve) - 1) / rate - EDGE
    return [float(time) for time in times if EDGE <= time <= end]


def correlogram(motion: Array, onsets: Array, longest: float) -> Array:
    """Correlate a clip's curves at every shift of the sound.

    Args:
        motion: ``motion_curve`` of the picture.
        onsets: ``onset_curve`` of the sound.
        longest: largest shift in seconds.

    Returns:
        Correlation coefficients ``[2 * longest * 200 + 1]``; the middle is for no shift, those
        after it for sound that is late. All 0 where a curve is flat.
    """
    times = np.arange(len(onsets)) / RATE
    seen = np.interp(times, np.arange(len(motion)) / FPS, motion)
    # As wide as a frame of the picture, which knows no better when things happen.
    reach = np.arange(-RATE // 10, RATE // 10 + 1)
    smooth = np.exp(-0.5 * (reach / (0.02 * RATE)) ** 2)
    heard = np.convolve(onsets, smooth / smooth.sum(), "same")
    seen, heard = seen - seen.mean(), heard - heard.mean()
    scale = np.sqrt((seen**2).sum() * (heard**2).sum())
    most = round(longest * RATE)
    if scale == 0:
        return np.zeros(2 * most + 1)
    full = np.correlate(heard, seen, "full") / scale
    middle = len(seen) - 1
    return full[middle - most : middle + most + 1]
