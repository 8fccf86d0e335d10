"""Render the pocket world: balls that bounce, each impact a decaying tone in its colour's pitch.

Frame n shows the instant n / 24 s and sample n is heard at n / 16000 s, so an impact at time t is
seen and heard at t without rounding to a frame. A clip follows from (seed, index) alone. Size,
speed, start, walls, floor, restitution and background differ from clip to clip and are not in the
caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS, SAMPLE_RATE, clip_frames, clip_samples

Array = NDArray[np.floating[Any]]

# Colour name -> (RGB 0..255, fundamental in Hz).
COLOURS: dict[str, tuple[tuple[int, int, int], float]] = {
    "red": ((224, 48, 40), 330.0),
    "green": ((40, 184, 72), 494.0),
    "blue": ((48, 88, 232), 740.0),
    "yellow": ((236, 204, 40), 1109.0),
}


@dataclass(frozen=True)
class Mode:
    """A way in which a ball moves. A flight lasts from impact to impact.

    Attributes:
        caption: words of the caption.
        first: range of the first flight's length in seconds.
        last: length in seconds at which flights stay: on the floor they shorten down to it, between
            the walls they lengthen up to it.
    """

    caption: str
    first: tuple[float, float]
    last: float


MODES = {
    "high": Mode("high on the floor", (0.90, 1.10), 0.78),
    "low": Mode("low on the floor", (0.60, 0.75), 0.48),
    "walls": Mode("between the walls", (0.55, 1.00), 1.05),
}
RESTITUTION = (0.88, 1.0)  # speed after an impact over that before
GRAVITY = 3.6  # heights per square second: the highest bounce, 1.10 s long, rises 0.54 heights
RADII = (5 / 64, 9 / 64)  # radius of a ball over the height
FLOORS = (55 / 64, 59 / 64)  # top of the floor strip over the height
WALL = 8 / 64  # largest thickness of a wall over the width
SKY, GROUND = (150, 225), (60, 110)  # grey of 255: top of the picture; floor and walls
FALL = (15, 60)  # of 255: darkening of the sky from the top to the bottom of the picture
TINT = 8  # of 255: largest difference from grey of a channel of the background

DECAY = 0.080  # seconds in which a tone falls to 1/e
CLICK = 0.004  # seconds that a click lasts
TONE_SECONDS = 0.8  # seconds after which a tone is cut off, 87 dB down
PARTIALS = (0.30, 0.15, 0.075)  # amplitudes of the fundamental and two harmonics
CLICK_LEVEL = 0.15
PAN = 0.25  # share of the level that moves to the ball's side; the mean of both stays the same


@dataclass(frozen=True)
class Scene:
    """Everything around the balls.

    Attributes:
        floor: top of the floor over the height.
        left: inner face of the left wall over the width.
        right: inner face of the right wall over the width.
        sky: RGB of 255 at the top and at the bottom of the picture, where the floor hides it.
        ground: RGB of 255 of floor and walls.
    """

    floor: float
    left: float
    right: float
    sky: tuple[Array, Array]
    ground: Array


@dataclass(frozen=True)
class Ball:
    """Motion of one ball: bouncing on the floor while it drifts sideways, or between the walls.

    Attributes:
        colour: name in ``COLOURS``.
        mode: name in ``MODES``.
        radius: radius over the height.
        flight: length of the first flight in seconds.
        phase: share of the first flight that is left before the first impact, in [0, 1).
        restitution: speed after an impact over that before.
        start: place across the bouncing at time 0, as a share of the range that the centre has.
        drift: change of that share per second.
    """

    colour: str
    mode: str
    radius: float
    flight: float
    phase: float
    restitution: float
    start: float
    drift: float

    @property
    def caption(self) -> str:
        """Caption of a clip with this ball alone."""
        return f"a {self.colour} ball bounces {MODES[self.mode].caption}"

    def flights(self, seconds: float) -> tuple[Array, Array]:
        """Return starts and lengths, in seconds, of the flights that cover [0, seconds)."""
        # The first is under way at time 0. A ball loses speed at every impact: on the floor it then
        # flies lower and shorter, between the walls it takes longer to get across.
        walls, last = self.mode == "walls", MODES[self.mode].last
        lengths, end = [self.flight], self.flight * self.phase
        while end < seconds:
            length = lengths[-1] / self.restitution if walls else lengths[-1] * self.restitution
            lengths.append(min(length, last) if walls else max(length, last))
            end += lengths[-1]
        starts = np.cumsum([self.flight * (self.phase - 1), *lengths[:-1]])
        return starts, np.array(lengths)

    def impacts(self, seconds: float) -> Array:
        """Return the times of the impacts in [0, seconds), ascending."""
        starts, lengths = self.flights(seconds)
        ends = starts + lengths
        return ends[ends < seconds]

    def centres(self, times: Array, scene: Scene, height: int, width: int) -> tuple[Array, Array]:
        """Compute the centre at given times.

        Args:
            times: seconds, any shape.
            scene: walls and floor to bounce from.
            height: height of the picture in pixels.
            width: width of the picture in pixels.

        Returns:
            x and y in pixels, each of the shape of ``times``; pixel (0, 0) covers [0, 1) squared.
        """
        radius = self.radius * height
        left, right = scene.left * width + radius, scene.right * width - radius
        top, bottom = radius, scene.floor * height - radius
        starts, lengths = self.flights(float(np.max(times, initial=0)) + 1e-9)
        number = np.searchsorted(starts, times, side="right") - 1
        done = (times - starts[number]) / lengths[number]
        across = self.start + self.drift * times
        if self.mode == "walls":
            forth = number % 2 == 0
            along = np.where(forth, done, 1 - done)
            return left + (right - left) * along, top + (bottom - top) * across
        # A throw that starts and ends on the floor: g t (length - t) / 2 high.
        rise = GRAVITY * height / 2 * lengths[number] ** 2 * done * (1 - done)
        return left + (right - left) * across, bottom - rise


@dataclass(frozen=True)
class SyntheticClip:
    """A rendered clip and the truth about it.

    Attributes:
        frames: uint8 ``[1+24K, H, W, 3]``.
        samples: float32 ``[2, 16000K]``.
        caption: colours and modes in words.
        impacts: times of all balls' impacts in seconds, ascending.
        colours: colour of each ball.
        modes: mode of each ball.
    """

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


def make_clip(
    seed: int, index: int, seconds: int, height: int, width: int, balls: int = 1
) -> SyntheticClip:
    """Render one clip.

    Args:
        seed: seed of the world.
        index: number of the clip in it.
        seconds: length in whole seconds.
        height: height in pixels.
        width: width in pixels.
        balls: number of balls, all of different colours.

    Returns:
        The clip, the same for the same arguments.

    Raises:
        OmniForcingError: if there are fewer than 1 or more than 4 balls, or no second.
    """
    if not 1 <= balls <= len(COLOURS):
        raise OmniForcingError(
            "config.out-of-range", f"a synthetic clip has 1 to {len(COLOURS)} balls, found {balls}"
        )
    if seconds < 1:
        raise OmniForcingError(
            "config.out-of-range",
            f"a synthetic clip lasts at least 1 s, found {seconds}; change clips.seconds",
        )
    rng = np.random.default_rng([seed, index])
    scene = _draw_scene(rng)
    chosen = [
        _draw_ball(rng, str(colour), seconds) for colour in rng.permutation(list(COLOURS))[:balls]
    ]
    return SyntheticClip(
        frames=_render(chosen, scene, seconds, height, width),
        samples=_sound(chosen, scene, seconds, height, width, rng),
        caption=" and ".join(ball.caption for ball in chosen),
        impacts=sorted(float(time) for ball in chosen for time in ball.impacts(seconds)),
        colours=[ball.colour for ball in chosen],
        modes=[ball.mode for ball in chosen],
    )


def _draw_scene(rng: np.random.Generator) -> Scene:
    tint = rng.uniform(-TINT, TINT, 3)
    top, fall, ground = (rng.uniform(*span) for span in (SKY, FALL, GROUND))
    left, right = rng.uniform(0, WALL, 2)
    return Scene(
        rng.uniform(*FLOORS), left, 1 - right, (top + tint, top - fall + tint), ground + tint
    )


def _draw_ball(rng: np.random.Generator, colour: str, seconds: int) -> Ball:
    mode = list(MODES)[rng.integers(len(MODES))]
    start, stop = rng.uniform(0.0, 1.0, 2)
    return Ball(
        colour,
        mode,
        radius=rng.uniform(*RADII),
        flight=rng.uniform(*MODES[mode].first),
        phase=rng.uniform(),
        restitution=rng.uniform(*RESTITUTION),
        start=start,
        # The clip ends at ``stop``, so that no ball touches what it does not bounce from.
        drift=(stop - start) / seconds,
    )


def _render(
    balls: list[Ball], scene: Scene, seconds: int, height: int, width: int
) -> NDArray[np.uint8]:
    times = np.arange(clip_frames(seconds)) / FPS
    frames = np.broadcast_to(
        _background(scene, height, width), (len(times), height, width, 3)
    ).copy()
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    for ball in reversed(balls):
        x, y = ball.centres(times, scene, height, width)
        square = (rows - y[:, None])[:, :, None] ** 2 + (columns - x[:, None])[:, None, :] ** 2
        # A pixel that the edge crosses is covered in part: that carries motion finer than a pixel.
        distance = np.sqrt(square.astype(np.float32))
        cover = np.clip(ball.radius * height + 0.5 - distance, 0, 1)[..., None]
        frames += cover * (np.array(COLOURS[ball.colour][0], np.float32) - frames)
    return np.rint(frames).astype(np.uint8)


def _background(scene: Scene, height: int, width: int) -> NDArray[np.float32]:
    """Render sky, floor and walls ``[H, W, 3]``; edges are not rounded to pixels."""
    down = np.linspace(0, 1, height)[:, None, None]
    sky = (1 - down) * scene.sky[0] + down * scene.sky[1]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    floor = np.clip(rows + 1 - scene.floor * height, 0, 1)
    left_wall = np.clip(scene.left * width - columns, 0, 1)
    walls = left_wall + np.clip(columns + 1 - scene.right * width, 0, 1)
    solid = np.maximum(floor, walls)[..., None]
    return (sky + solid * (scene.ground - sky)).astype(np.float32)


def _sound(
    balls: list[Ball], scene: Scene, seconds: int, height: int, width: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    samples = np.zeros((2, clip_samples(seconds)))
    for ball in balls:
        times = ball.impacts(seconds)
        places = ball.centres(times, scene, height, width)[0] / width
        for time, place in zip(times, places, strict=True):
            # An impact lies between two samples: the tone begins with the phase that it has reached
            # at the later one.
            first = int(np.ceil(time * SAMPLE_RATE))
            sound = _impact(COLOURS[ball.colour][1], first / SAMPLE_RATE - time, rng)
            sound = sound[: samples.shape[1] - first]
            side = PAN * (2 * place - 1)
            samples[:, first : first + len(sound)] += np.array([[1 - side], [1 + side]]) * sound
    return np.clip(samples, -1, 1).astype(np.float32)


def _impact(hertz: float, late: float, rng: np.random.Generator) -> Array:
    """Render one impact from the first sample on, which lies ``late`` seconds after it."""
    time = late + np.arange(int(TONE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    partials = enumerate(PARTIALS, start=1)
    tone = sum(level * np.sin(2 * np.pi * hertz * n * time) for n, level in partials)
    click = CLICK_LEVEL * rng.uniform(-1, 1, len(time)) * np.clip(1 - time / CLICK, 0, 1)
    return tone * np.exp(-time / DECAY) + click
