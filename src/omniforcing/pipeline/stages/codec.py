"""Stage codec: video VAE, audio VAE, vocoder and text encoder.

They are trained, taken from the package or loaded, and measured on held-out clips.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from omniforcing.codec.codec import DESCRIPTION, Codec
from omniforcing.codec.config import Source
from omniforcing.codec.networks import load_parts, video_folder
from omniforcing.codec.text import build_tiny
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir, atomic_write, write_json
from omniforcing.core.latents import Pair
from omniforcing.data.memory import clips_of
from omniforcing.data.shards import read_raw
from omniforcing.data.sources import HELDOUT, TRAIN
from omniforcing.evaluation.reconstruction import draw_reconstructions, measure_reconstruction
from omniforcing.media.files import write_mp4
from omniforcing.media.mel import resample
from omniforcing.pipeline.processes import run_side_by_side
from omniforcing.pipeline.stage import Stage
from omniforcing.pocket.foundation import KEPT, take_kept
from omniforcing.training.codec.fitting import (
    Recipe,
    latent_means,
    merge_curves,
    train_sound,
    train_video,
)
from omniforcing.training.loop import CURVES

PARTS = ("video_vae", "audio_vae", "vocoder")
STATISTICS_CLIPS = 256
SAMPLES = 4  # reconstructions that are logged as videos


def run(stage: Stage) -> None:
    """Make the codec from its source, publish it, and measure what it gives back."""
    make = {Source.train: train, Source.kept: take, Source.load: load}[stage.config.codec.source]
    with stage.publish() as folder:
        curves = make(stage, folder)
    stage.metrics(report(stage))
    stage.curves(curves)


def train(stage: Stage, folder: Path) -> Path:
    """Train all parts, take the latents' statistics from training clips, save.

    Returns:
        The training curves.
    """
    config, shards = stage.config, stage.input("shards")
    train_parts(stage, shards)
    codec = Codec(*load_parts(stage.work), config.clips.height, config.clips.width)
    # Stored in half precision: what is measured from here on is what is stored.
    codec.half().float().to(config.trainer.device)
    codec.normalise_by(latent_means(codec, clips_of(shards, TRAIN, STATISTICS_CLIPS)))
    codec.save(folder, torch.float16)
    captions = [raw["txt"].decode() for _, raw in read_raw(shards)]
    build_tiny(folder / "text", config.codec.text, captions, config.seed)
    return merge_curves(stage.work, stage.work / CURVES)


def train_parts(stage: Stage, shards: Path) -> None:
    """Train picture and sound side by side, unless an earlier process has finished them."""
    recipe = Recipe(stage.config.codec, stage.config.trainer, stage.config.seed)
    left = [
        job
        for job, part in ((train_video, "video_vae"), (train_sound, "vocoder"))
        if not (stage.work / part).is_dir()
    ]
    run_side_by_side(
        [(job, (recipe, shards, stage.work)) for job in left],
        "the codec's training stopped before its end",
    )


def take(stage: Stage, folder: Path) -> Path:
    """Take the codec that the package keeps, verified; return its curves."""
    take_kept("codec", stage.config.codec, stage.config.preset, folder)
    return KEPT / "codec.curves.csv"


def load(stage: Stage, folder: Path) -> Path:
    """Copy a codec and its text encoder from a folder in LTX-2's layout or ours.

    Returns:
        Curves without a row.

    Raises:
        OmniForcingError: naming the part that the folder lacks.
    """
    config = stage.config
    source = Path(config.codec.path or "")
    codec = Codec(*load_parts(source), config.clips.height, config.clips.width)
    text = source / "text" if (source / "text").is_dir() else source
    encoder = "encoder" if (text / "encoder").is_dir() else "text_encoder"
    parts = [source / name for name in (video_folder(source), "audio_vae", "vocoder")]
    parts += [text / name for name in ("tokenizer", encoder, "connectors")]
    names = (*PARTS, "text/tokenizer", "text/encoder", "text/connectors")
    for part, name in zip(parts, names, strict=True):
        if not part.is_dir():
            raise OmniForcingError(
                "pipeline.codec-part-missing",
                f"{part} is missing; codec.path must hold {', '.join(p.name for p in parts)}",
            )
        shutil.copytree(part, folder / name)
    write_json(folder / DESCRIPTION, codec.describe())
    atomic_write(stage.work / CURVES, "step\n")
    return stage.work / CURVES


def report(stage: Stage) -> dict[str, float]:
    """Measure reconstructions of held-out clips; log a picture and samples with sound."""
    config = stage.config
    original = clips_of(stage.input("shards"), HELDOUT, config.codec.report_clips)
    found = reconstruct(Codec.load(stage.folder, config.trainer.device), original)
    with atomic_dir(stage.work / "reconstructions") as folder:
        draw_reconstructions(original, found, folder / "reconstructions.png")
        for index in range(min(SAMPLES, len(found.video))):
            for name, media in ((f"{index}", found), (f"{index}-original", original)):
                write_mp4(folder / f"{name}.mp4", media.map(lambda x, i=index: x[i].numpy()))
    stage.log_artifact(stage.work / "reconstructions", "reconstructions")
    return measure_reconstruction(original, found)


def reconstruct(codec: Codec, original: Pair[Tensor]) -> Pair[Tensor]:
    """Pass clips through the codec and back, with sound at the clips' own rate."""
    pieces = []
    for video, audio in zip(*original, strict=True):
        pieces.append(codec.decode(codec.encode(Pair(video[None], audio[None]))))
    samples = torch.cat([piece.audio.cpu() for piece in pieces])
    return Pair(
        torch.cat([piece.video.cpu() for piece in pieces]), resample(samples, codec.sample_rate)
    )
