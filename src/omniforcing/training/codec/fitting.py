"""Fit the codec's parts, and a causal video decoder, with the training loop.

Every function goes on from what its work folder holds, so a killed training continues.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniforcing.codec.codec import Codec, to_pixels
from omniforcing.codec.config import CodecConfig
from omniforcing.codec.networks import build_audio_vae, build_video_vae, build_vocoder
from omniforcing.core.files import atomic_dir, atomic_write
from omniforcing.core.pair import Pair
from omniforcing.core.random import step_seed
from omniforcing.data.memory import LARGEST_BYTES, clips_in, stack
from omniforcing.data.sources import TRAIN
from omniforcing.media.mel import log_mel
from omniforcing.training.codec import causal, training
from omniforcing.training.config import CausalDecoderConfig, TrainerConfig
from omniforcing.training.curves import CURVES, Log

BATCH = 8  # clips that pass through a trained part at a time


@dataclass(frozen=True)
class Recipe:
    """What the training of a codec depends on beside its clips.

    Attributes:
        codec: sizes and optimisation of the parts.
        trainer: how the training loop runs.
        seed: seed of the run; each part derives its own.
    """

    codec: CodecConfig
    trainer: TrainerConfig
    seed: int


def train_video(recipe: Recipe, shards: Path, work: Path) -> None:
    """Train the video VAE on the training clips and save it in ``work/video_vae``."""
    config = recipe.codec.video
    frames = stack(shards, TRAIN, "video", largest=LARGEST_BYTES)
    if len(frames) < (found := clips_in(shards, TRAIN)):
        print(f"the video VAE trains on {len(frames)} of {found} clips, evenly spaced", flush=True)
    torch.manual_seed(step_seed(recipe.seed, 0, "video vae"))
    vae = build_video_vae(config)
    draw_batch = training.video_crops(frames, config, recipe.seed)
    training.initialise_video(vae, to_pixels(frames[:64, 24:41]))
    module = training.VideoVaeTraining(vae, config, recipe.seed)
    _save(_fit_part(module, draw_batch, recipe.trainer, work / "video"), work / "video_vae")


def train_sound(recipe: Recipe, shards: Path, work: Path) -> None:
    """Train the audio VAE, then the vocoder on what the VAE makes of the clips.

    They are saved in ``work/audio_vae`` and ``work/vocoder``.
    """
    audio, voice, seed = recipe.codec.audio, recipe.codec.vocoder, recipe.seed
    samples = stack(shards, TRAIN, "audio")
    mels = torch.cat([log_mel(some) for some in samples.split(BATCH)])
    torch.manual_seed(step_seed(seed, 0, "audio vae"))
    vae = build_audio_vae(audio)
    training.initialise_audio(vae, mels[:16])
    module: training.CodecTraining = training.AudioVaeTraining(vae, audio, seed)
    draw_mels = training.mel_crops(mels, audio, seed)
    vae = _fit_part(module, draw_mels, recipe.trainer, work / "audio")
    _save(vae, work / "audio_vae")
    decoded = _reconstructed(vae.to(recipe.trainer.device), mels)
    torch.manual_seed(step_seed(seed, 0, "vocoder"))
    vocoder = build_vocoder(voice)
    training.initialise_vocoder(vocoder, mels[:16])
    module = training.VocoderTraining(vocoder, voice, seed)
    draw_sound = training.sound_crops(mels, decoded, samples, voice, seed)
    _save(_fit_part(module, draw_sound, recipe.trainer, work / "sound"), work / "vocoder")


def _fit_part(
    module: Any, draw_batch: Callable[[int], Any], trainer: TrainerConfig, folder: Path
) -> Any:
    """Train one part, continuing what ``folder`` holds, and return its network."""
    trainer = replace(trainer, precision=training.PRECISION)
    batches = training.batches_of(draw_batch, module.config.steps, trainer.checkpoint_every)
    _fit(module, batches, steps=module.config.steps, work=folder, trainer=trainer, name=folder.name)
    return module.net


@torch.no_grad()
def _reconstructed(vae: Any, mels: Tensor) -> Tensor:
    """Log-mels ``[N, 2, T, bins]`` as the audio VAE gives them back, on the CPU."""
    device = next(vae.parameters()).device
    batches = (some.to(device) for some in mels.split(BATCH))
    return torch.cat(
        [vae.decode(vae.encode(some).latent_dist.mode()).sample.cpu() for some in batches]
    )


def _fit(*args: Any, **kwargs: Any) -> None:
    from omniforcing.training.loop import fit  # Lightning takes seconds to load

    fit(*args, **kwargs)


def _save(net: Any, folder: Path) -> None:
    """Save a trained network as diffusers does, whole or not at all."""
    with atomic_dir(folder) as temporary:
        net.save_pretrained(temporary)


@torch.no_grad()
def latent_means(codec: Codec, media: Pair[Tensor]) -> Pair[Tensor]:
    """Posterior means of clips, not normalised."""
    return Pair(
        torch.cat([codec.video_means(some) for some in media.video.split(BATCH)]),
        torch.cat([codec.audio_means(some) for some in media.audio.split(BATCH)]),
    )


def merge_curves(work: Path, path: Path) -> Path:
    """Write the parts' training curves as one table: a row per logged step, a column per value."""
    rows: dict[int, dict[str, str]] = {}
    for part in ("video", "audio", "sound"):
        with (work / part / CURVES).open(newline="") as file:
            for row in csv.DictReader(file):
                values = {f"{part}.{name}": value for name, value in row.items() if name != "step"}
                rows.setdefault(int(row["step"]), {}).update(values)
    names = sorted({name for row in rows.values() for name in row})
    lines = [",".join(["step", *names])]
    for step in sorted(rows):
        lines.append(",".join([str(step), *(rows[step].get(name, "") for name in names)]))
    atomic_write(path, "\n".join([*lines, ""]))
    return path


@dataclass(frozen=True)
class DecoderFit:
    """Where and how video decoders are trained.

    Attributes:
        trainer: how the training loop runs.
        seed: seed of the run.
        work: folder with a folder per decoder.
        log: receives ``<name>.<value>`` and the step.
    """

    trainer: TrainerConfig
    seed: int
    work: Path
    log: Log

    def train(
        self,
        name: str,
        vae: Any,
        config: CausalDecoderConfig,
        z: Tensor,
        frames: Tensor | None,
        target: causal.Target,
    ) -> None:
        """Fit the decoder of ``vae`` in place, going on from what ``work/name`` holds.

        Args:
            name: of the decoder.
            vae: video VAE whose decoder learns.
            config: steps, batch and crops.
            z: what the decoder takes, ``[N, C, T, h, w]``.
            frames: of the same clips, ``[N, 1 + 8 (T - 1), H, W, 3]``; None if the target does
                without.
            target: pictures for a crop of ``z`` and its frames.
        """
        trainer = replace(self.trainer, precision=training.PRECISION)
        seed = step_seed(self.seed, 0, name)
        draw: Callable[[int], Any] = causal.latent_crops(z, frames, config, seed)

        def log(values: dict[str, float], step: int) -> None:
            self.log({f"{name}.{key}": value for key, value in values.items()}, step)

        _fit(
            causal.DecoderTraining(vae.decoder, config, seed, target),
            training.batches_of(draw, config.steps, trainer.checkpoint_every),
            steps=config.steps,
            work=self.work / name,
            trainer=trainer,
            log=log,
            name=name,
        )
        vae.requires_grad_(False).eval()

    def from_scratch(
        self, name: str, example: Any, config: CausalDecoderConfig, z: Tensor, frames: Tensor
    ) -> Any:
        """Train a non-causal decoder on latents of the video VAE ``example``; return its VAE."""
        torch.manual_seed(step_seed(self.seed, 0, "non-causal decoder"))
        vae = type(example).from_config({**example.config, "decoder_causal": False})
        training.initialise_video(vae, to_pixels(frames[:64, 24:41]))
        vae.encoder.load_state_dict(example.encoder.state_dict())
        for statistic in ("latents_mean", "latents_std"):
            getattr(vae, statistic).copy_(getattr(example, statistic))
        config = replace(config, steps=config.train_steps)
        self.train(name, vae, config, z, frames, lambda _, known: to_pixels(known))
        return vae

    def adapted(self, name: str, teacher: Any, config: CausalDecoderConfig, z: Tensor) -> Any:
        """Make the decoder of ``teacher`` causal and regress its pictures; return the VAE."""
        student = causal.with_decoder(teacher, causal=True)
        causal.keep_still(student.decoder)

        @torch.no_grad()
        def target(latents: Tensor, _known: Tensor) -> Tensor:
            pictures: Tensor = teacher.to(latents.device).decode(latents).sample.float()
            return pictures

        self.train(name, student, config, z, None, target)
        return student
