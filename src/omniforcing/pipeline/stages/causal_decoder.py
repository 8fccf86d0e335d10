"""Optional stage causal_decoder: adapt a non-causal video decoder to a causal one.

A causal decoder streams exactly: decoding block by block gives the frames of decoding whole clips.
"""

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
from omniforcing.core.layout import LAYOUTS
from omniforcing.core.pair import Pair
from omniforcing.data.memory import clips_of, stack
from omniforcing.data.sources import HELDOUT, TRAIN
from omniforcing.data.tensors import TensorShards
from omniforcing.evaluation.reconstruction import measure_reconstruction
from omniforcing.pipeline.stage import Stage
from omniforcing.training.codec.fitting import DecoderFit
from omniforcing.training.config import DecoderSource
from omniforcing.training.curves import CURVES

TEACHER, STUDENT = "non_causal", "causal"


def run(stage: Stage) -> None:
    """Take or train the non-causal decoder, adapt it, publish both codecs and measure them."""
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
        for name, adapted in codecs.items():
            write_codec(folder / name, source, adapted)
    # Saved from the CPU before they move.
    device = config.trainer.device
    stage.write_metrics(report(stage, {name: made.to(device) for name, made in codecs.items()}))
    stage.write_curves(stage.work / STUDENT / CURVES)


def decoder_inputs(stage: Stage, codec: Codec, split: str, count: int | None = None) -> Tensor:
    """Read the video decoder's inputs for the clips of a split.

    Args:
        stage: the running stage.
        codec: denormalises the latents.
        split: name of the split.
        count: how many clips, from the first on; all if None.

    Returns:
        Denormalised video latents ``[N, C, T, h, w]``.
    """
    shards = TensorShards(stage.input("latents"), split, stage.config.clips.latent_counts)
    batches = [Pair(*(x[None] for x in latents)) for _, latents, _, _ in shards.samples()][:count]
    return torch.cat([codec.denormalise(latents, shards.grid).video for latents in batches])


def non_causal(stage: Stage, codec: Codec, z: Tensor, fitting: DecoderFit) -> Any:
    """Return a video VAE with a non-causal decoder: the codec's own, or one trained here.

    Args:
        stage: the running stage.
        codec: its decoder is taken, or its latents are what a new decoder is trained on.
        z: denormalised video latents ``[N, C, T, h, w]``.
        fitting: trains decoders.

    Raises:
        OmniForcingError: if the codec's decoder is to be taken and is causal.
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
    """Copy a codec folder with another video VAE.

    Args:
        folder: the folder to write.
        source: folder of the codec whose other parts are copied.
        codec: has the video VAE.
    """
    replaced = (video_folder(source), DESCRIPTION, MANIFEST)

    def skip(at: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(at) == source and name in replaced]

    shutil.copytree(source, folder, ignore=skip)
    codec.video_vae.save_pretrained(folder / "video_vae")
    write_json(folder / DESCRIPTION, codec.describe())


def report(stage: Stage, codecs: dict[str, Codec]) -> dict[str, float]:
    """Measure both decoders on held-out clips, and the error of streaming the causal one.

    Returns:
        Figures of both reconstructions, the PSNR in dB that the causal decoder loses, and its
        streaming error.
    """
    original = clips_of(stage.input("shards"), HELDOUT, stage.config.causal_decoder.report_clips)
    z = decoder_inputs(stage, codecs[STUDENT], HELDOUT, len(original.video))
    decoded = {name: Pair(codec.decode_frames(z), original.audio) for name, codec in codecs.items()}
    figures: dict[str, float] = {}
    for name, media in decoded.items():
        measured = measure_reconstruction(original, media)
        figures |= {f"{name}.{key}": value for key, value in measured.items()}
    to_teacher = measure_reconstruction(decoded[TEACHER], decoded[STUDENT])
    figures["causal.psnr_to_non_causal_db"] = to_teacher["psnr_db"]
    figures["lost_db"] = figures["non_causal.psnr_db"] - figures["causal.psnr_db"]
    figures["causal.streaming_error"] = streaming_error(codecs[STUDENT], z)
    return figures


@torch.no_grad()
def streaming_error(codec: Codec, z: Tensor) -> float:
    """Return the largest difference between decoding block by block and decoding the whole clip.

    Args:
        codec: has the video decoder.
        z: denormalised video latents ``[N, C, T, h, w]``; the first clip is decoded.

    Returns:
        Difference of pixels, which are in [-1, 1].
    """
    stream, table = StreamingVideoDecoder(codec.video_vae), LAYOUTS["prefix"]
    spans = [block.video for block in table.blocks(1 + (z.shape[2] - 1) // 3)]
    streamed = torch.cat([stream.push(z[:1, :, span.slice]) for span in spans], 2)
    return float((streamed - codec.video_vae.decode(z[:1]).sample).abs().max())
