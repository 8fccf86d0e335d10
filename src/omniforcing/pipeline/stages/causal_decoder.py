"""Optional stage causal_decoder: make a causal video decoder, which streams exactly, of a non-causal one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniforcing.codec.codec import DESCRIPTION, Codec
from omniforcing.codec.networks import video_folder
from omniforcing.codec.streaming import StreamingVideoDecoder
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import MANIFEST, write_json
from omniforcing.core.latents import Pair
from omniforcing.core.layout import LAYOUTS
from omniforcing.data.memory import clips_of, stack
from omniforcing.data.sources import HELDOUT, TRAIN
from omniforcing.data.tensors import TensorShards
from omniforcing.evaluation.reconstruction import measure_reconstruction
from omniforcing.pipeline.stage import Stage
from omniforcing.training.codec.fitting import DecoderFit
from omniforcing.training.config import DecoderSource
from omniforcing.training.loop import CURVES

TEACHER, STUDENT = "non_causal", "causal"


def run(stage: Stage) -> None:
    """Take or train the non-causal decoder, adapt it, publish both codecs, and measure them."""
    config, source = stage.config, stage.input("codec")
    codec = Codec.load(source)
    z = decoder_inputs(stage, codec, TRAIN, config.causal_decoder.clips)
    fitting = DecoderFit(config.trainer, config.seed, stage.work, stage.log_metrics)
    teacher = non_causal(stage, codec, z, fitting)
    student = fitting.adapted(STUDENT, teacher, config.causal_decoder, z)
    codecs = {
        name: Codec(vae, codec.audio_vae, codec.vocoder, codec.height, codec.width)
        for name, vae in ((TEACHER, teacher), (STUDENT, student))
    }
    with stage.publish() as folder:
        for name, made in codecs.items():
            write_codec(folder / name, source, made)
    device = config.trainer.device
    stage.metrics(report(stage, {name: made.to(device) for name, made in codecs.items()}))
    stage.curves(stage.work / STUDENT / CURVES)


def decoder_inputs(stage: Stage, codec: Codec, split: str, count: int | None = None) -> Tensor:
    """Read what the video decoder takes of the first ``count`` clips of a split (None: all).

    Returns:
        Latents ``[N, C, T, h, w]``, not normalised.
    """
    shards = TensorShards(stage.input("latents"), split, stage.config.clips.latent_counts)
    batches = [Pair(*(x[None] for x in latents)) for _, latents, _, _ in shards.samples()][:count]
    return torch.cat([codec.denormalise(latents, shards.grid).video for latents in batches])


def non_causal(stage: Stage, codec: Codec, z: Tensor, fitting: DecoderFit) -> Any:
    """The video VAE with the non-causal decoder: the codec's own, or one trained on its latents.

    Raises:
        OmniForcingError: if it shall be the codec's, which is causal.
    """
    config = stage.config.causal_decoder
    if config.source is DecoderSource.codec:
        if codec.video_vae.config.decoder_causal:
            raise OmniForcingError(
                "pipeline.decoder-causal-already",
                f"the video decoder in {stage.input('codec')} is causal already and streams "
                "exactly; nothing is to be adapted (causal_decoder.source=train trains a "
                "non-causal one to try the adaptation on)",
            )
        return codec.video_vae
    frames = stack(stage.input("shards"), TRAIN, "video", len(z))
    return fitting.from_scratch(TEACHER, codec.video_vae, config, z, frames)


def write_codec(folder: Path, source: Path, codec: Codec) -> None:
    """Write a whole codec folder: the source's, with the video VAE of ``codec``."""
    ours = (video_folder(source), DESCRIPTION, MANIFEST)
    shutil.copytree(
        source,
        folder,
        ignore=lambda at, names: [n for n in names if Path(at) == source and n in ours],
    )
    codec.video_vae.save_pretrained(folder / "video_vae")
    write_json(folder / DESCRIPTION, codec.describe())


def report(stage: Stage, codecs: dict[str, Codec]) -> dict[str, float]:
    """Compare both decoders on held-out clips, and the causal one's streamed with its whole decode."""
    original = clips_of(stage.input("shards"), HELDOUT, stage.config.causal_decoder.report_clips)
    z = decoder_inputs(stage, codecs[STUDENT], HELDOUT, len(original.video))
    found = {name: Pair(codec.decode_frames(z), original.audio) for name, codec in codecs.items()}
    figures = {
        f"{name}.{key}": value
        for name, media in found.items()
        for key, value in measure_reconstruction(original, media).items()
    }
    figures["causal.psnr_to_non_causal_db"] = measure_reconstruction(
        found[TEACHER], found[STUDENT]
    )["psnr_db"]
    figures["lost_db"] = figures["non_causal.psnr_db"] - figures["causal.psnr_db"]
    figures["causal.streaming_error"] = streaming_error(codecs[STUDENT], z)
    return figures


@torch.no_grad()
def streaming_error(codec: Codec, z: Tensor) -> float:
    """Largest difference of a clip decoded block by block from the same decoded whole.

    Pictures are in [-1, 1].
    """
    stream, table = StreamingVideoDecoder(codec.video_vae), LAYOUTS["prefix"]
    spans = [block.video for block in table.blocks(1 + (z.shape[2] - 1) // 3)]
    streamed = torch.cat([stream.push(z[:1, :, span.slice]) for span in spans], 2)
    return float((streamed - codec.video_vae.decode(z[:1]).sample).abs().max())
