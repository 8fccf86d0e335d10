"""Clips that carry their truth, and how it is read back from what was made of them.

A picture holds its number as a bar code between four coloured corners. The sound has a tone of its
own on each side and a beep at known times. Imports nothing of the package: `measure` reads files
with any version of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH, RATE = 160, 256, 48000
CORNERS = ((200, 40, 40), (40, 180, 40), (40, 60, 200), (200, 200, 40))
BITS = 10  # of a picture's number
SECONDS = 6.5  # of a file
BEEPS = tuple(np.arange(0.75, 60, 1.0))
BEEP_HZ, BEEP_SECONDS, BEEP_LEVEL = 3000, 0.06, 0.5
TONES, LEVEL = (440.0, 880.0), 0.05
# Linear light from BT.709's primaries to those of BT.2020 (ITU-R BT.2087).
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
HEARD_RATE = 16000  # of what the ingest makes


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Draw picture ``number``, uint8 ``[height, width, 3]``."""
    image = np.full((height, width, 3), 96, np.uint8)
    tall, wide = height // 4, width // 5
    image[:tall, :wide], image[:tall, -wide:] = CORNERS[0], CORNERS[1]
    image[-tall:, :wide], image[-tall:, -wide:] = CORNERS[2], CORNERS[3]
    bar = width // (BITS + 2)
    for bit in range(BITS):
        on = number >> (BITS - 1 - bit) & 1
        image[int(height * 0.4) : int(height * 0.6), (bit + 1) * bar : (bit + 2) * bar] = (
            230 if on else 20
        )
    return image


def hdr_signal(image: NDArray[np.uint8], curve: str) -> NDArray[np.uint16]:
    """Code a picture of standard range as HDR in wide primaries, uint16 of the same shape.

    Args:
        image: BT.709, shown with a gamma of 2.4 and white at 203 cd/m2.
        curve: ``smpte2084`` (PQ) or ``arib-std-b67`` (HLG), of ITU-R BT.2100.
    """
    light = 203 * (image / 255.0) ** 2.4 @ TO_BT2020.T
    if curve == "smpte2084":
        power = (light.clip(0) / 10000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        # Undo the display's system gamma of 1.2 at 1000 cd/m2, which acts on luminance.
        luminance = (light @ np.array([0.2627, 0.6780, 0.0593])).clip(1e-9)
        scene = (light / 1000) * (luminance / 1000)[..., None] ** (1 / 1.2 - 1)
        low = np.sqrt(3 * scene.clip(0))
        high = 0.17883277 * np.log((12 * scene - 0.28466892).clip(1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, low, high)
    return np.rint(signal.clip(0, 1) * 65535).astype(np.uint16)


def number_of(image: NDArray[Any]) -> int:
    """Read the number of a picture of any size."""
    height, width = image.shape[:2]
    row = image[int(height * 0.45) : int(height * 0.55)].mean((0, 2))
    bar = width / (BITS + 2)
    number = 0
    for bit in range(BITS):
        middle = row[int((bit + 1.3) * bar) : int((bit + 1.7) * bar)]
        number = 2 * number + int(middle.mean() > 125)
    return number


def corners_of(image: NDArray[Any]) -> NDArray[np.float64]:
    """Read the colours of the four corners, ``[4, 3]``."""
    height, width = image.shape[:2]
    tall, wide = height // 16, width // 20
    places = [
        image[y : y + tall, x : x + wide]
        for y in (tall, height - 2 * tall)
        for x in (wide, width - 2 * wide)
    ]
    return np.array([place.reshape(-1, 3).mean(0) for place in places])


def sound(
    seconds: float = SECONDS, rate: float = RATE, channels: int = 2, tones: Sequence[float] = TONES
) -> NDArray[np.float32]:
    """Make the sound, float32 ``[channels, N]``; channels after the second are silent."""
    at = np.arange(round(seconds * rate)) / rate
    samples = np.zeros((channels, len(at)))
    for channel, tone in enumerate(tones[:channels]):
        samples[channel] = LEVEL * np.sin(2 * np.pi * tone * at)
        for beep in BEEPS:
            on = (at >= beep) & (at < beep + BEEP_SECONDS)
            samples[channel, on] += BEEP_LEVEL * np.sin(2 * np.pi * BEEP_HZ * (at[on] - beep))
    return samples.astype(np.float32)


def beeps_of(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Find the beginnings of the beeps in sound at 16 kHz ``[2, N]``, in seconds."""
    at = np.arange(samples.shape[1]) / HEARD_RATE
    width = int(0.004 * HEARD_RATE)
    shifted = samples.mean(0) * np.exp(-2j * np.pi * BEEP_HZ * at)
    level = np.abs(np.convolve(shifted, np.ones(width) / width, "same"))
    if level.max(initial=0.0) < 5e-3:
        return np.array([])
    loud = np.concatenate([[False], level > level.max() / 2])
    return np.flatnonzero(loud[1:] & ~loud[:-1]) / HEARD_RATE


def tones_of(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Measure the level of each tone in each side, ``[side, tone]``, without the beeps."""
    at = np.arange(samples.shape[1]) / HEARD_RATE
    waves = np.exp(-2j * np.pi * np.array(TONES)[:, None] * at)
    levels: NDArray[np.float64] = 2 * np.abs(samples @ waves.T) / samples.shape[1]
    return levels


def shown_at(stamps: Sequence[float], wanted: NDArray[Any]) -> NDArray[np.int64]:
    """Choose the picture that belongs to each time: the last one due, or a nearer next one.

    The next one is nearer only within half an output frame (`media.reading.pictures`).
    """
    times = np.asarray(stamps)
    after = np.searchsorted(times, wanted + 1e-4, side="right")
    before = np.maximum(after - 1, 0)
    after = np.minimum(after, len(times) - 1)
    early, late = times[after] - wanted, wanted - times[before]
    return np.where((early < late - 1e-4) & (early <= 0.5 / 24 + 1e-4), after, before)


def numbered(fps: float, seconds: float = SECONDS) -> Iterator[tuple[int, float]]:
    """Yield number and time of each picture of a constant rate."""
    for number in range(round(seconds * fps)):
        yield number, number / fps
