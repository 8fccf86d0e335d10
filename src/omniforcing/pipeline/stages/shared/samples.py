"""Decoded samples of a model, to see and hear in MLflow."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from omniforcing.codec.codec import Codec
from omniforcing.core.latents import Latents
from omniforcing.media.files import write_mp4
from omniforcing.pipeline.stage import Stage


def log_samples(
    stage: Stage, latents: Latents, captions: list[str], codec: Path, grid: tuple[int, int]
) -> None:
    """Decode samples and log them to MLflow as mp4.

    Args:
        stage: the running stage.
        latents: normalised latents, one per caption.
        captions: captions, which name the files.
        codec: folder of the codec.
        grid: height and width of the video latents.
    """
    media = Codec.load(codec, stage.config.trainer.device).decode(latents, grid).map(Tensor.cpu)
    folder = stage.work / "samples"
    folder.mkdir(exist_ok=True)
    for index, caption in enumerate(captions):
        clip = media.map(lambda x, i=index: x[i].numpy())
        write_mp4(folder / sample_name(index, caption), clip)
    stage.log_artifact(folder, "samples")


def sample_name(index: int, caption: str) -> str:
    """Name a sample's file after its caption, whatever characters that has."""
    plain = re.sub(r"[^\w.,-]+", "_", caption)[:60]
    return f"{index}_{plain}.mp4"
