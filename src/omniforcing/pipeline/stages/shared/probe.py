"""Sync during training: measures of a few samples of the EMA weights, logged with the losses."""

from __future__ import annotations

from itertools import islice

import torch

from omniforcing.data.tensors import TensorShards
from omniforcing.evaluation.summary import pocket_world
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.factory import open_factory
from omniforcing.pocket.events import colours_in
from omniforcing.pocket.observe import observe
from omniforcing.pocket.sync import TOLERANCE_MS
from omniforcing.training.curves import Probe
from omniforcing.training.stages import StageModule

LOGGED = ("sync_margin", "ball_present", "colour_accuracy", "pitch_accuracy")


def training_probe(stage: Stage, module: StageModule) -> Probe | None:
    """Build the probe that a training calls to measure samples of its EMA weights.

    The probe has its own random generators, the same at each call, and leaves those of the training
    alone.

    Args:
        stage: the running stage.
        module: the module that it trains.

    Returns:
        The probe; None if the preset asks for none, or if captions are not of the pocket world.
    """
    config = stage.config
    if not config.trainer.probes:
        return None
    # Read without being declared as inputs: what is only logged must not cause a new training.
    data = stage.folder.parent
    heldout = TensorShards(data / "latents", "heldout", config.clips.latent_counts).samples()
    captions = [caption for _, _, caption, _ in islice(heldout, config.trainer.probe_clips)]
    if len(captions) < 2 or not all(map(colours_in, captions)):
        return None
    factory = open_factory(config, data / "codec", data / "latents")

    @torch.no_grad()
    def probe() -> dict[str, float]:
        draw = factory.bind(stage.name, module.ema.model, config.clips.seconds)
        media = factory.media(draw, captions, list(range(len(captions))))
        clips = [observe(clip, caption) for clip, caption in zip(media, captions, strict=True)]
        measured = pocket_world(clips, TOLERANCE_MS / 1000)
        return {name: measured[name] for name in LOGGED}

    return probe
