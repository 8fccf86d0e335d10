"""Make an animated WebP of a clip with sound: each frame beside the spectrogram, under a moving line.

``python -m tools.moving_picture CLIP.mp4 OUT.webp --prompt TEXT`` makes the picture at the top of the
README from a clip that `omniforcing stream` wrote. Impacts that are seen in the picture are marked
above the spectrogram, impacts that are heard in the sound below it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from omniforcing.core.console import run_command
from omniforcing.core.layout import FPS
from omniforcing.evaluation.plots import HEARD, SEEN
from omniforcing.media.files import read_mp4
from omniforcing.media.mel import log_mel
from omniforcing.pocket.events import Media
from omniforcing.pocket.observe import Observation, observe

SIDE, WIDTH, MARK = 192, 528, 16  # pixels: frame, spectrogram, height of a row of marks
EVERY = 2  # of the clip's 24 frames per second, this one is shown


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clip", type=Path, help="an MP4 of 24 fps with 16 kHz sound")
    parser.add_argument("out", type=Path, help="the WebP to write")
    parser.add_argument("--prompt", required=True, help="what the clip was generated from")
    parser.add_argument("--seconds", type=float, default=10.0, help="length (default: 10)")
    arguments = parser.parse_args()

    def write() -> None:
        media = read_mp4(arguments.clip)
        observation = observe(media, arguments.prompt)
        frames = list(animate(media, observation, arguments.seconds))
        frames[0].save(
            arguments.out,
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 * EVERY / FPS),
            loop=0,
            quality=60,
            method=6,
        )
        print(f"{arguments.out}: {len(frames)} frames, {arguments.out.stat().st_size:,} bytes")

    sys.exit(run_command(write))


def animate(media: Media, observation: Observation, seconds: float) -> Iterator[Image.Image]:
    """Yield a picture per shown frame, ``192 x 720`` pixels.

    Args:
        media: frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``.
        observation: the impacts to mark.
        seconds: how much of the clip to show.
    """
    shown = min(seconds, (len(media.video) - 1) / FPS)
    background = _background(media, observation, shown)
    for index in range(0, round(shown * FPS) + 1, EVERY):
        picture = Image.new("RGB", (SIDE + WIDTH, SIDE))
        frame = Image.fromarray(media.video[index])
        picture.paste(frame.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (0, 0))
        picture.paste(background, (SIDE, 0))
        x = SIDE + _column(index / FPS, shown)
        ImageDraw.Draw(picture).line([(x, MARK), (x, SIDE - MARK)], "white", 2)
        yield picture


def _column(time: float, seconds: float) -> int:
    return round(time / seconds * (WIDTH - 1))


def _background(media: Media, observation: Observation, seconds: float) -> Image.Image:
    """The spectrogram between the two rows of marks."""
    picture = Image.new("RGB", (WIDTH, SIDE), "black")
    mel = log_mel(torch.as_tensor(media.audio).float()[None])[0].mean(0).numpy()
    picture.paste(_coloured(mel[: round(100 * seconds)]), (0, MARK))
    drawing = ImageDraw.Draw(picture)
    rows = ((observation.seen.impacts, 0, SEEN, "seen"),)
    rows += ((observation.heard.impacts, SIDE - MARK, HEARD, "heard"),)
    for times, top, colour, name in rows:
        for time in times:
            x = _column(time, seconds)
            drawing.rectangle([x - 1, top + 2, x + 1, top + MARK - 2], colour)
        drawing.text((WIDTH - 40, top + 2), name, colour)
    return picture


def _coloured(mel: NDArray[np.float32]) -> Image.Image:
    """Log-mel ``[T, bins]`` as a picture, low tones at the bottom."""
    level = (mel - mel.min()) / max(float(np.ptp(mel)), 1e-6)
    pixels = (colormaps["magma"](level.T[::-1])[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((WIDTH, SIDE - 2 * MARK), Image.Resampling.BILINEAR)


if __name__ == "__main__":
    main()
