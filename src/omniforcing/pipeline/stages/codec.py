"""Stage codec: train, take or load the video VAE, audio VAE, vocoder and text encoder.

Reconstructions of held-out clips are measured.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from omniforcing.codec.codec import DESCRIPTION, Codec
from omniforcing.codec.config import DIFFUSION_DECODER, Source, VideoDecoder
from omniforcing.codec.networks import load_diffusion_decoder, load_parts, video_folder
from omniforcing.codec.text import build_tiny
from omniforcing.codec.tokens import PromptTokenizer, learn_tokenizer
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir, atomic_write, write_json
from omniforcing.core.pair import Pair
from omniforcing.data.encode import survey_captions
from omniforcing.data.memory import clips_of
from omniforcing.data.shards import read_raw
from omniforcing.data.sources import HELDOUT, TRAIN
from omniforcing.evaluation.reconstruction import draw_reconstructions, measure_reconstruction
from omniforcing.media.files import write_mp4
from omniforcing.media.mel import resample
from omniforcing.pipeline.processes import run_in_processes
from omniforcing.pipeline.stage import Stage
from omniforcing.pocket.foundation import KEPT, take_kept
from omniforcing.training.codec.fitting import (
    Recipe,
    latent_means,
    merge_curves,
    train_sound,
    train_video,
)
from omniforcing.training.curves import CURVES

PARTS = ("video_vae", "audio_vae", "vocoder")
STATISTICS_CLIPS = 256
SAMPLES = 4  # reconstructions that are logged as videos


def run(stage: Stage) -> None:
    """Make the codec from its configured source, publish it and measure its reconstructions."""
    make = {Source.train: train, Source.kept: take, Source.load: load}[stage.config.codec.source]
    with stage.publish() as folder:
        curves = make(stage, folder)
    stage.write_metrics(report(stage))
    stage.write_curves(curves)


def train(stage: Stage, folder: Path) -> Path:
    """Train all parts, set the latents' statistics from training clips, and save the codec.

    Returns:
        File of the training curves.

    Raises:
        OmniForcingError: if too many captions have more than ``codec.text.length`` tokens.
    """
    config, shards = stage.config, stage.input("shards")
    captions = [raw["txt"].decode() for _, raw in read_raw(shards)]
    # Before the training, which may take a day: stage latents would find the same afterwards.
    tokenizer = PromptTokenizer.of(learn_tokenizer(captions, config.codec.text.length))
    survey_captions(shards, tokenizer, config.clips.max_reject_share)
    train_parts(stage, shards)
    codec = Codec(*load_parts(stage.work), config.clips.height, config.clips.width)
    # Weights are stored in half precision: round them before statistics and measures, so that
    # these are of the stored codec.
    codec.half().float().to(config.trainer.device)
    codec.normalise_by(latent_means(codec, clips_of(shards, TRAIN, STATISTICS_CLIPS)))
    codec.save(folder, torch.float16)
    build_tiny(folder / "text", config.codec.text, captions, config.seed)
    return merge_curves(stage.work, stage.work / CURVES)


def train_parts(stage: Stage, shards: Path) -> None:
    """Train the video and the audio parts in parallel, unless a killed process has finished them.

    Raises:
        OmniForcingError: if a training fails.
    """
    recipe = Recipe(stage.config.codec, stage.config.trainer, stage.config.seed)
    # The vocoder is the last audio part: its folder says that both are there.
    trainings = ((train_video, "video_vae"), (train_sound, "vocoder"))
    unfinished = [train for train, part in trainings if not (stage.work / part).is_dir()]
    calls = [(train, (recipe, shards, stage.work)) for train in unfinished]
    run_in_processes(calls, "the codec's training stopped before its end")


def take(stage: Stage, folder: Path) -> Path:
    """Verify and copy the codec that the package keeps.

    Returns:
        File of its training curves.

    Raises:
        OmniForcingError: if it does not fit the configuration or its checksums.
    """
    take_kept("codec", stage.config.codec, stage.config.preset, folder)
    return KEPT / "codec.curves.csv"


def load(stage: Stage, folder: Path) -> Path:
    """Copy a codec and its text encoder from a folder in LTX-2's layout or ours.

    Returns:
        File of training curves, without a row.

    Raises:
        OmniForcingError: naming the part that the folder lacks.
    """
    config = stage.config
    source = Path(config.codec.path or "")
    by_diffusion = config.codec.video_decoder is VideoDecoder.diffusion
    diffusion = load_diffusion_decoder(source) if by_diffusion else None
    size = config.clips.height, config.clips.width
    codec = Codec(*load_parts(source), *size, diffusion=diffusion)
    text = source / "text" if (source / "text").is_dir() else source
    encoder = "encoder" if (text / "encoder").is_dir() else "text_encoder"
    parts = [source / name for name in (video_folder(source), "audio_vae", "vocoder")]
    parts += [text / name for name in ("tokenizer", encoder, "connectors")]
    names = [*PARTS, "text/tokenizer", "text/encoder", "text/connectors"]
    if by_diffusion:
        parts.append(source / DIFFUSION_DECODER)
        names.append(DIFFUSION_DECODER)
    for part, name in zip(parts, names, strict=True):
        if not part.is_dir():
            raise OmniForcingError(
                "file.missing",
                f"{part} is missing; codec.path must hold {', '.join(p.name for p in parts)}",
            )
        shutil.copytree(part, folder / name)
    write_json(folder / DESCRIPTION, codec.describe())
    atomic_write(stage.work / CURVES, "step\n")
    return stage.work / CURVES


def report(stage: Stage) -> dict[str, float]:
    """Measure reconstructions of held-out clips, and log a picture and a few videos to MLflow."""
    config = stage.config
    original = clips_of(stage.input("shards"), HELDOUT, config.codec.report_clips)
    reconstructed = reconstruct(Codec.load(stage.folder, config.trainer.device), original)
    with atomic_dir(stage.work / "reconstructions") as folder:
        draw_reconstructions(original, reconstructed, folder / "reconstructions.png")
        for index in range(min(SAMPLES, len(reconstructed.video))):
            for name, media in ((f"{index}", reconstructed), (f"{index}-original", original)):
                write_mp4(folder / f"{name}.mp4", media.map(lambda x, i=index: x[i].numpy()))
    stage.log_artifact(stage.work / "reconstructions", "reconstructions")
    return measure_reconstruction(original, reconstructed)


def reconstruct(codec: Codec, original: Pair[Tensor]) -> Pair[Tensor]:
    """Encode and decode clips, one at a time.

    Args:
        codec: the codec.
        original: frames uint8 ``[N, T, H, W, 3]`` and samples float32 ``[N, 2, S]`` at 16 kHz.

    Returns:
        Clips of the same shapes, at the same rates.
    """
    clips = []
    for video, audio in zip(*original, strict=True):
        clips.append(codec.decode(codec.encode(Pair(video[None], audio[None]))))
    frames = torch.cat([clip.video.cpu() for clip in clips])
    samples = torch.cat([clip.audio.cpu() for clip in clips])
    return Pair(frames, resample(samples, codec.sample_rate))
