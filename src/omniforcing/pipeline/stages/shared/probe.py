"""Sync during training: what a few samples of the averaged weights show, for the curves beside the losses."""

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
from omniforcing.training.loop import Probe
from omniforcing.training.stages import StageModule

SHOWN = ("sync_margin", "ball_present", "colour_accuracy", "pitch_accuracy")


def training_probe(stage: Stage, module: StageModule) -> Probe | None:
    """A probe of the module's averaged weights as what the stage trains; None if the preset wants none, or for captions
    of another world than the pocket's. It has its own randomness, the same each time, and leaves the training's alone.
    """
    config = stage.config
    if not config.trainer.probes:
        return None
    # Not inputs of the stage: what is only logged must not retrain anything.
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
        return {name: measured[name] for name in SHOWN}

    return probe
