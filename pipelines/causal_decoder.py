"""Optional stage causal_decoder: a causal video decoder, which streams exactly, out of a non-causal one."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniforcing.codec.codec import DESCRIPTION, Codec, to_pixels, video_folder
from omniforcing.codec.streaming import VideoStream
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import MANIFEST, write_json
from omniforcing.core.latents import Pair
from omniforcing.core.layout import LAYOUTS
from omniforcing.core.random import step_seed
from omniforcing.data.memory import clips_of, stack
from omniforcing.data.sources import HELDOUT, TRAIN
from omniforcing.data.tensors import TensorShards
from omniforcing.evaluation.reconstruction import measure
from omniforcing.pipeline.stage import Stage, stage_main
from omniforcing.training.codec import causal, training
from omniforcing.training.config import CausalDecoderConfig, DecoderSource
from omniforcing.training.loop import CURVES, fit

TEACHER, STUDENT = "non_causal", "causal"


def decoder_inputs(stage: Stage, codec: Codec, split: str, count: int | None = None) -> Tensor:
    """What the video decoder takes, ``[N, C, T, h, w]``, of the first ``count`` clips of a split (None: all)."""
    shards = TensorShards(stage.input("latents"), split, stage.config.clips.latent_counts)
    batches = [Pair(*(x[None] for x in latents)) for _, latents, _, _ in shards.samples()][:count]
    return torch.cat([codec.denormalise(latents, shards.grid).video for latents in batches])


def train_decoder(
    stage: Stage,
    name: str,
    vae: Any,
    config: CausalDecoderConfig,
    z: Tensor,
    frames: Tensor | None,
    target: causal.Target,
) -> None:
    """Fit the decoder of ``vae``, in place, going on from what the stage's work folder holds."""
    trainer = replace(stage.config.trainer, precision=training.PRECISION)
    seed = step_seed(stage.config.seed, 0, name)
    draw: Callable[[int], Any] = causal.latent_crops(z, frames, config, seed)
    module = causal.DecoderTraining(vae.decoder, config, seed, target)

    def log(values: dict[str, float], step: int) -> None:
        stage.log_metrics({f"{name}.{key}": value for key, value in values.items()}, step)

    batches = training.batches_of(draw, config.steps, trainer.checkpoint_every)
    fit(
        module,
        batches,
        steps=config.steps,
        work=stage.work / name,
        trainer=trainer,
        log=log,
        name=name,
    )
    vae.requires_grad_(False).eval()


def non_causal(stage: Stage, codec: Codec, z: Tensor) -> Any:
    """The video VAE with the non-causal decoder: the codec's own, or one trained from scratch on the codec's latents.

    Raises:
        OmniForcingError: if it shall be the codec's, which is causal.
    """
    config = stage.config.causal_decoder
    if config.source is DecoderSource.codec:
        if codec.video_vae.config.decoder_causal:
            raise OmniForcingError(
                f"the video decoder in {stage.input('codec')} is causal already and streams exactly; nothing is to be adapted "
                "(causal_decoder.source=train trains a non-causal one to try the adaptation on)"
            )
        return codec.video_vae
    frames = stack(stage.input("shards"), TRAIN, "video", len(z))
    torch.manual_seed(step_seed(stage.config.seed, 0, "non-causal decoder"))
    vae = type(codec.video_vae).from_config({**codec.video_vae.config, "decoder_causal": False})
    training.initialise_video(vae, to_pixels(frames[:64, 24:41]))
    vae.encoder.load_state_dict(codec.video_vae.encoder.state_dict())
    for name in ("latents_mean", "latents_std"):
        getattr(vae, name).copy_(getattr(codec.video_vae, name))
    train_decoder(
        stage,
        TEACHER,
        vae,
        replace(config, steps=config.train_steps),
        z,
        frames,
        lambda _, known: to_pixels(known),
    )
    return vae


def adapted(stage: Stage, teacher: Any, z: Tensor) -> Any:
    """The causal decoder after its regression of the teacher's pictures."""
    student = causal.with_decoder(teacher, causal=True)
    causal.keep_still(student.decoder)

    @torch.no_grad()
    def target(latents: Tensor, _known: Tensor) -> Tensor:
        pictures: Tensor = teacher.to(latents.device).decode(latents).sample.float()
        return pictures

    train_decoder(stage, STUDENT, student, stage.config.causal_decoder, z, None, target)
    return student


@torch.no_grad()
def streaming_error(codec: Codec, z: Tensor) -> float:
    """The largest difference of a clip decoded block by block from the same decoded whole, pictures being in [-1, 1]."""
    stream, table = VideoStream(codec.video_vae), LAYOUTS["prefix"]
    spans = [block.video for block in table.blocks(1 + (z.shape[2] - 1) // 3)]
    streamed = torch.cat([stream.push(z[:1, :, span.slice]) for span in spans], 2)
    return float((streamed - codec.video_vae.decode(z[:1]).sample).abs().max())


def report(stage: Stage, codecs: dict[str, Codec]) -> dict[str, float]:
    """Both decoders on held-out clips, against the clips and against each other, and the streamed against the whole decode."""
    original = clips_of(stage.input("shards"), HELDOUT, stage.config.causal_decoder.report_clips)
    z = decoder_inputs(stage, codecs[STUDENT], HELDOUT, len(original.video))
    found = {name: Pair(codec.frames_of(z), original.audio) for name, codec in codecs.items()}
    figures = {
        f"{name}.{key}": value
        for name, media in found.items()
        for key, value in measure(original, media).items()
    }
    figures["causal.psnr_to_non_causal_db"] = measure(found[TEACHER], found[STUDENT])["psnr_db"]
    figures["lost_db"] = figures["non_causal.psnr_db"] - figures["causal.psnr_db"]
    figures["causal.streaming_error"] = streaming_error(codecs[STUDENT], z)
    return figures


def publish(folder: Path, source: Path, codec: Codec) -> None:
    """Write a whole codec folder: the source's, with the video VAE of ``codec``."""
    ours = (video_folder(source), DESCRIPTION, MANIFEST)
    shutil.copytree(
        source,
        folder,
        ignore=lambda at, names: [n for n in names if Path(at) == source and n in ours],
    )
    codec.video_vae.save_pretrained(folder / "video_vae")
    write_json(folder / DESCRIPTION, codec.describe())


def run(stage: Stage) -> None:
    """Take or train the non-causal decoder, adapt it, publish both codecs, and measure them."""
    source = stage.input("codec")
    codec = Codec.load(source)
    z = decoder_inputs(stage, codec, TRAIN, stage.config.causal_decoder.clips)
    teacher = non_causal(stage, codec, z)
    student = adapted(stage, teacher, z)
    codecs = {
        name: Codec(vae, codec.audio_vae, codec.vocoder, codec.height, codec.width)
        for name, vae in ((TEACHER, teacher), (STUDENT, student))
    }
    with stage.publish() as folder:
        for name, made in codecs.items():
            publish(folder / name, source, made)
    device = stage.config.trainer.device
    stage.metrics(report(stage, {name: made.to(device) for name, made in codecs.items()}))
    stage.curves(stage.work / STUDENT / CURVES)


if __name__ == "__main__":
    stage_main("causal_decoder", run)
