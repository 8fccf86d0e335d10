"""Stage codec: video VAE, audio VAE, vocoder and text encoder: trained, kept or loaded; measured on held-out clips."""

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniforcing.codec.codec import (
    DESCRIPTION,
    Codec,
    build_audio_vae,
    build_video_vae,
    build_vocoder,
    load_parts,
    video_folder,
)
from omniforcing.codec.config import Source
from omniforcing.codec.text import build_tiny
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir, atomic_write, write_json
from omniforcing.core.latents import Pair
from omniforcing.core.random import step_seed
from omniforcing.data.memory import LARGEST_BYTES, clips_in, clips_of, stack
from omniforcing.data.shards import read_raw
from omniforcing.data.sources import HELDOUT, TRAIN
from omniforcing.evaluation.reconstruction import draw, measure
from omniforcing.media.files import write_mp4
from omniforcing.media.mel import log_mel, resample
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.processes import run_side_by_side
from omniforcing.pipeline.stage import Stage, stage_main
from omniforcing.pocket.foundation import KEPT, take_kept
from omniforcing.training.codec import training
from omniforcing.training.loop import CURVES, fit

PARTS = ("video_vae", "audio_vae", "vocoder")
STATISTICS_CLIPS = 256
BATCH = 8


def train_part(module: Any, draw_batch: Callable[[int], Any], config: Config, folder: Path) -> Any:
    """Train one part, continuing what ``folder`` holds, and return its network."""
    trainer = replace(config.trainer, precision=training.PRECISION)
    batches = training.batches_of(draw_batch, module.config.steps, trainer.checkpoint_every)
    fit(module, batches, steps=module.config.steps, work=folder, trainer=trainer, name=folder.name)
    return module.net


def train_video(config: Config, shards: Path, work: Path) -> None:
    """Train the video VAE and save it in ``work/video_vae``."""
    settings = config.codec.video
    frames = stack(shards, TRAIN, "video", largest=LARGEST_BYTES)
    if len(frames) < (found := clips_in(shards, TRAIN)):
        print(f"the video VAE trains on {len(frames)} of {found} clips, evenly spaced", flush=True)
    torch.manual_seed(step_seed(config.seed, 0, "video vae"))
    vae = build_video_vae(settings)
    draw_batch = training.video_crops(frames, settings, config.seed)
    training.initialise_video(vae, training.to_pixels(frames[:64, 24:41]))
    module = training.VideoVaeTraining(vae, settings, config.seed)
    save(train_part(module, draw_batch, config, work / "video"), work / "video_vae")


def train_sound(config: Config, shards: Path, work: Path) -> None:
    """Train the audio VAE, then the vocoder on what it makes of the clips; save both below ``work``."""
    audio, voice = config.codec.audio, config.codec.vocoder
    samples = stack(shards, TRAIN, "audio")
    mels = torch.cat([log_mel(some) for some in samples.split(BATCH)])
    torch.manual_seed(step_seed(config.seed, 0, "audio vae"))
    vae = build_audio_vae(audio)
    training.initialise_audio(vae, mels[:16])
    vae = train_part(
        training.AudioVaeTraining(vae, audio, config.seed),
        training.mel_crops(mels, audio, config.seed),
        config,
        work / "audio",
    )
    save(vae, work / "audio_vae")
    decoded = through(vae.to(config.trainer.device), mels)
    torch.manual_seed(step_seed(config.seed, 0, "vocoder"))
    vocoder = build_vocoder(voice)
    training.initialise_vocoder(vocoder, mels[:16])
    crops = training.sound_crops(mels, decoded, samples, voice, config.seed)
    save(
        train_part(
            training.VocoderTraining(vocoder, voice, config.seed), crops, config, work / "sound"
        ),
        work / "vocoder",
    )


@torch.no_grad()
def through(vae: Any, mels: Tensor) -> Tensor:
    """Log-mels as the audio VAE gives them back, on the CPU."""
    device = next(vae.parameters()).device
    batches = (some.to(device) for some in mels.split(BATCH))
    return torch.cat(
        [vae.decode(vae.encode(some).latent_dist.mode()).sample.cpu() for some in batches]
    )


def save(net: Any, folder: Path) -> None:
    """Save a trained network as diffusers does, whole or not at all."""
    with atomic_dir(folder) as temporary:
        net.save_pretrained(temporary)


def train_all(config: Config, shards: Path, work: Path) -> None:
    """Train picture and sound beside each other, what is not there yet."""
    left = [
        job
        for job, part in ((train_video, "video_vae"), (train_sound, "vocoder"))
        if not (work / part).is_dir()
    ]
    run_side_by_side(
        [(job, (config, shards, work)) for job in left],
        "the codec's training stopped before its end",
    )


def train(stage: Stage, folder: Path) -> Path:
    """Train all parts, take the latents' statistics from training clips, save, and return the training curves."""
    config, shards = stage.config, stage.input("shards")
    train_all(config, shards, stage.work)
    codec = Codec(*load_parts(stage.work), config.clips.height, config.clips.width)
    # Stored in half precision: what is measured from here on is what is stored.
    codec.half().float().to(config.trainer.device)
    codec.normalise_by(means_of(codec, clips_of(shards, TRAIN, STATISTICS_CLIPS)))
    codec.save(folder, torch.float16)
    captions = [raw["txt"].decode() for _, raw in read_raw(shards)]
    build_tiny(folder / "text", config.codec.text, captions, config.seed)
    return merge_curves(stage.work, stage.work / CURVES)


@torch.no_grad()
def means_of(codec: Codec, media: Pair[Tensor]) -> Pair[Tensor]:
    """Unnormalised latents of clips."""
    return Pair(
        torch.cat([codec.video_means(some) for some in media.video.split(BATCH)]),
        torch.cat([codec.audio_means(some) for some in media.audio.split(BATCH)]),
    )


def merge_curves(work: Path, path: Path) -> Path:
    """One table of the parts' curves: a row per logged step, a column per part and value."""
    rows: dict[int, dict[str, str]] = {}
    for part in ("video", "audio", "sound"):
        with (work / part / CURVES).open(newline="") as file:
            for row in csv.DictReader(file):
                values = {f"{part}.{name}": value for name, value in row.items() if name != "step"}
                rows.setdefault(int(row["step"]), {}).update(values)
    names = sorted({name for row in rows.values() for name in row})
    lines = [
        ",".join([str(step), *(rows[step].get(name, "") for name in names)])
        for step in sorted(rows)
    ]
    atomic_write(path, "\n".join([",".join(["step", *names]), *lines, ""]))
    return path


def kept(stage: Stage, folder: Path) -> Path:
    """Take the codec that the package keeps, verified; return its curves."""
    take_kept("codec", stage.config.codec, stage.config.preset, folder)
    return KEPT / "codec.curves.csv"


def load(stage: Stage, folder: Path) -> Path:
    """Copy a codec and its text encoder from a folder in LTX-2's layout or ours; return curves without a row."""
    config = stage.config
    source = Path(config.codec.path or "")
    codec = Codec(*load_parts(source), config.clips.height, config.clips.width)
    text = source / "text" if (source / "text").is_dir() else source
    parts = [source / name for name in (video_folder(source), "audio_vae", "vocoder")]
    parts += [
        text / name
        for name in (
            "tokenizer",
            "encoder" if (text / "encoder").is_dir() else "text_encoder",
            "connectors",
        )
    ]
    for part, name in zip(
        parts, (*PARTS, "text/tokenizer", "text/encoder", "text/connectors"), strict=True
    ):
        if not part.is_dir():
            raise OmniForcingError(
                f"{part} is missing; codec.path must hold {', '.join(p.name for p in parts)}"
            )
        shutil.copytree(part, folder / name)
    write_json(folder / DESCRIPTION, codec.describe())
    atomic_write(stage.work / CURVES, "step\n")
    return stage.work / CURVES


def reconstruct(codec: Codec, original: Pair[Tensor]) -> Pair[Tensor]:
    """Clips through the codec and back, with sound at the clips' own rate."""
    pieces = [
        codec.decode(codec.encode(Pair(v[None], a[None]))) for v, a in zip(*original, strict=True)
    ]
    samples = torch.cat([piece.audio.cpu() for piece in pieces])
    return Pair(
        torch.cat([piece.video.cpu() for piece in pieces]), resample(samples, codec.sample_rate)
    )


def report(stage: Stage) -> dict[str, float]:
    """Measure reconstructions of held-out clips; log a picture and samples with sound."""
    config = stage.config
    original = clips_of(stage.input("shards"), HELDOUT, config.codec.report_clips)
    found = reconstruct(Codec.load(stage.folder, config.trainer.device), original)
    with atomic_dir(stage.work / "reconstructions") as folder:
        draw(original, found, folder / "reconstructions.png")
        for index in range(min(4, len(found.video))):
            write_mp4(folder / f"{index}.mp4", found.map(lambda x, i=index: x[i].numpy()))
            write_mp4(
                folder / f"{index}-original.mp4", original.map(lambda x, i=index: x[i].numpy())
            )
    stage.log_artifact(stage.work / "reconstructions", "reconstructions")
    return measure(original, found)


def run(stage: Stage) -> None:
    """Make the codec from its source, publish it, and measure what it gives back."""
    make = {Source.train: train, Source.kept: kept, Source.load: load}[stage.config.codec.source]
    with stage.publish() as folder:
        curves = make(stage, folder)
    stage.metrics(report(stage))
    stage.curves(curves)


if __name__ == "__main__":
    stage_main("codec", run)
