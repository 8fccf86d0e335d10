"""The pocket world: coloured balls that bounce, each impact a decaying tone whose pitch follows the colour.

Frame n shows the instant n / 24 s and sample n is heard at n / 16000 s, so an impact at time t is seen and heard at t
without rounding to a frame. Every clip follows from (seed, index) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.errors import OmniForcingError
from omniforcing.layout import FPS, SAMPLE_RATE, clip_frames, clip_samples

Array = NDArray[np.floating[Any]]

# Colour name -> (RGB 0..255, fundamental in Hz).
COLOURS: dict[str, tuple[tuple[int, int, int], float]] = {
    "red": ((224, 48, 40), 330.0),
    "green": ((40, 184, 72), 494.0),
    "blue": ((48, 88, 232), 740.0),
    "yellow": ((236, 204, 40), 1109.0),
}
# Mode -> how captions say it.
MODES = {"high": "high on the floor", "low": "low on the floor", "walls": "between the walls"}
PERIODS = {"high": (0.85, 1.05), "low": (0.55, 0.70), "walls": (0.55, 1.00)}  # seconds between impacts

RADIUS = 7 / 64  # of the height
FLOOR = 57 / 64  # top of the floor strip, of the height
DECAY = 0.080  # seconds
CLICK = 0.004  # seconds
TONE_SECONDS = 0.8  # the tone has fallen by 87 dB
PARTIALS = (0.30, 0.15, 0.075)  # the fundamental and two harmonics
CLICK_LEVEL = 0.15
PAN = 0.25  # the mean of the channels does not depend on it


@dataclass(frozen=True)
class Ball:
    """One ball's motion: elastic, periodic, on the floor (drifting sideways) or between the walls.

    ``period`` is the time between impacts, ``phase`` in [0, 1) the first impact in periods, ``start`` the horizontal (floor
    modes) or vertical (walls) place of the centre as a share of the room it has, ``drift`` that share's change per second.
    """

    colour: str
    mode: str
    period: float
    phase: float
    start: float
    drift: float

    @property
    def caption(self) -> str:
        return f"a {self.colour} ball bounces {MODES[self.mode]}"

    def impacts(self, seconds: float) -> Array:
        """Impact times in [0, seconds), ascending."""
        times = (np.arange(int(seconds / self.period) + 2) + self.phase) * self.period
        return times[times < seconds]

    def centres(self, times: Array, height: int, width: int) -> tuple[Array, Array]:
        """x and y of the centre in pixels at ``times`` (seconds), each of their shape; pixel (0, 0) covers [0, 1) squared."""
        radius = RADIUS * height
        across, up = width - 2 * radius, FLOOR * height - 2 * radius
        turn = times / self.period - self.phase
        if self.mode == "walls":
            return radius + across * np.abs(turn % 2 - 1), radius + up * (self.start + self.drift * times)
        # One gravity for all: the height of a bounce goes with the square of its period.
        apex = up * (self.period / PERIODS["high"][1]) ** 2
        fall = 4 * apex * (turn % 1) * (1 - turn % 1)
        return radius + across * (self.start + self.drift * times), radius + up - fall


@dataclass(frozen=True)
class SyntheticClip:
    """A rendered clip: frames uint8 [1+24K, H, W, 3], samples float32 [2, 16000K], and the truth (times in seconds)."""

    frames: NDArray[np.uint8]
    samples: NDArray[np.float32]
    caption: str
    impacts: list[float]
    colours: list[str]
    modes: list[str]

    @property
    def colour(self) -> str:
        """The first ball's colour."""
        return self.colours[0]

    @property
    def mode(self) -> str:
        """The first ball's mode: high, low or walls."""
        return self.modes[0]


def make_clip(seed: int, index: int, seconds: int, height: int, width: int, balls: int = 1) -> SyntheticClip:
    """Render clip ``index`` of the world ``seed``: ``seconds`` whole seconds of ``balls`` balls of different colours.

    Raises:
        OmniForcingError: if there are fewer than 1 or more than 4 balls, or no second.
    """
    if not 1 <= balls <= len(COLOURS):
        raise OmniForcingError(f"a synthetic clip has 1 to {len(COLOURS)} balls, not {balls}; change clips.balls")
    if seconds < 1:
        raise OmniForcingError(f"a synthetic clip lasts at least 1 s, not {seconds}; change clips.seconds")
    rng = np.random.default_rng([seed, index])
    chosen = [_draw(rng, str(colour), seconds) for colour in rng.permutation(list(COLOURS))[:balls]]
    return SyntheticClip(
        frames=_render(chosen, seconds, height, width),
        samples=_sound(chosen, seconds, height, width, rng),
        caption=" and ".join(ball.caption for ball in chosen),
        impacts=sorted(float(time) for ball in chosen for time in ball.impacts(seconds)),
        colours=[ball.colour for ball in chosen],
        modes=[ball.mode for ball in chosen],
    )


def _draw(rng: np.random.Generator, colour: str, seconds: int) -> Ball:
    mode = list(MODES)[rng.integers(len(MODES))]
    start, stop = rng.uniform(0.0, 1.0, 2)
    # A ball between the walls keeps its height; one on the floor ends at `stop` and so never touches a wall.
    drift = 0.0 if mode == "walls" else (stop - start) / seconds
    return Ball(colour, mode, rng.uniform(*PERIODS[mode]), rng.uniform(), start, drift)


def _render(balls: list[Ball], seconds: int, height: int, width: int) -> NDArray[np.uint8]:
    times = np.arange(clip_frames(seconds)) / FPS
    frames = np.broadcast_to(_background(height, width), (len(times), height, width, 3)).copy()
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    for ball in reversed(balls):
        x, y = ball.centres(times, height, width)
        square = (rows - y[:, None])[:, :, None] ** 2 + (columns - x[:, None])[:, None, :] ** 2
        # A pixel that the edge crosses is covered in part: that is what carries motion finer than a pixel.
        cover = np.clip(RADIUS * height + 0.5 - np.sqrt(square.astype(np.float32)), 0, 1)[..., None]
        frames += cover * (np.array(COLOURS[ball.colour][0], np.float32) - frames)
    return np.rint(frames).astype(np.uint8)


def _background(height: int, width: int) -> NDArray[np.float32]:
    """A grey that darkens downwards over a darker floor strip, [H, W, 3]."""
    grey = np.linspace(200, 150, height, dtype=np.float32)
    grey[round(FLOOR * height) :] = 90
    return np.broadcast_to(grey[:, None, None], (height, width, 3))


def _sound(balls: list[Ball], seconds: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    samples = np.zeros((2, clip_samples(seconds)))
    for ball in balls:
        times = ball.impacts(seconds)
        places = ball.centres(times, height, width)[0] / width
        for time, place in zip(times, places, strict=True):
            first = int(np.ceil(time * SAMPLE_RATE))
            heard = _impact(COLOURS[ball.colour][1], first / SAMPLE_RATE - time, rng)[: samples.shape[1] - first]
            side = PAN * (2 * place - 1)
            samples[:, first : first + len(heard)] += np.array([[1 - side], [1 + side]]) * heard
    return np.clip(samples, -1, 1).astype(np.float32)


def _impact(hertz: float, late: float, rng: np.random.Generator) -> Array:
    """The sound of one impact from its first sample, ``late`` seconds (under one sample) after the impact itself."""
    time = late + np.arange(int(TONE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    tone = sum(level * np.sin(2 * np.pi * hertz * n * time) for n, level in enumerate(PARTIALS, start=1))
    click = CLICK_LEVEL * rng.uniform(-1, 1, len(time)) * np.clip(1 - time / CLICK, 0, 1)
    return tone * np.exp(-time / DECAY) + click
