"""Make README's animated WebP: frames, and the spectrogram of their sound under a moving line.

``python -m tools.moving_picture docs/pictures/pocket.webp --prompt "a red ball bounces high on the
floor" --prompt "..."`` lets the kept teacher of the pocket world make a clip of four seconds for
each prompt, and shows them one after the other. ``--clip clip.mp4`` shows a clip that `omniforcing
stream` wrote instead. Impacts that are seen are marked above the spectrogram, impacts that are
heard below.
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

from omniforcing.codec.codec import Codec
from omniforcing.codec.text import TextEncoder
from omniforcing.core.console import run_command
from omniforcing.core.layout import FPS, MEL_RATE
from omniforcing.core.pair import Media, Pair
from omniforcing.distill.sampling import WholeClip
from omniforcing.evaluation.plots import HEARD, SEEN
from omniforcing.media.files import read_mp4
from omniforcing.media.mel import log_mel, resample
from omniforcing.model.weights.student import load_model
from omniforcing.pipeline.config import load_config
from omniforcing.pocket.foundation import KEPT
from omniforcing.pocket.observe import Observation, observe

SIDE, WIDTH, MARK = 192, 528, 16  # pixels: frame, spectrogram, height of a row of marks
EVERY = 2  # of the clip's 24 frames per second, this one is shown


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the WebP to write")
    parser.add_argument("--prompt", action="append", required=True, help="one per clip")
    parser.add_argument("--clip", type=Path, help="show this MP4 instead of sampling the teacher")
    parser.add_argument("--seconds", type=float, default=10.0, help="in all (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the teacher (default: 1)")
    arguments = parser.parse_args()

    def write() -> None:
        prompts: list[str] = arguments.prompt
        pictures: list[Image.Image] = []
        if arguments.clip:
            clips = iter([read_mp4(arguments.clip)])
        else:
            clips = sample_teacher(prompts, arguments.seed)
        for prompt, media in zip(prompts, clips, strict=True):
            seconds = arguments.seconds / len(prompts)
            pictures += animate(media, observe(media, prompt), seconds)
        pictures[0].save(
            arguments.out,
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 * EVERY / FPS),
            loop=0,
            quality=60,
            method=6,
        )
        print(f"{arguments.out}: {len(pictures)} frames, {arguments.out.stat().st_size:,} bytes")

    sys.exit(run_command(write))


@torch.no_grad()
def sample_teacher(prompts: list[str], seed: int) -> Iterator[Media]:
    """Yield a clip of the kept teacher per prompt, sampled as preset ``pocket`` does."""
    config = load_config(preset="pocket")
    codec, text = Codec.load(KEPT / "codec"), TextEncoder.load(KEPT / "codec" / "text")
    grid = codec.token_grid(config.clips.height, config.clips.width)
    teacher = load_model(KEPT / "teacher", sinks=0).eval()
    clip = WholeClip(teacher, config.clips.latent_counts, grid)
    for prompt in prompts:
        noise = torch.Generator().manual_seed(seed)
        features = text.encode([prompt]), text.encode([""])
        latents = clip.sample_guided(*features, config.teacher.sampler, noise)
        media = codec.decode(latents, grid)
        yield Pair(media.video[0].numpy(), resample(media.audio, codec.sample_rate)[0].numpy())


def animate(media: Media, observation: Observation, seconds: float) -> Iterator[Image.Image]:
    """Yield a picture per shown frame, 192 pixels high and 720 wide.

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
    picture.paste(_coloured(mel[: round(MEL_RATE * seconds)]), (0, MARK))
    drawing = ImageDraw.Draw(picture)
    for times, top, colour, name in (
        (observation.seen.impacts, 0, SEEN, "seen"),
        (observation.heard.impacts, SIDE - MARK, HEARD, "heard"),
    ):
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
