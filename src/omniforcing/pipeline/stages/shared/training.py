"""What the four trained transformer stages do alike: open the data, fit, publish the EMA, summarise the curves."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from omniforcing.core.files import atomic_write
from omniforcing.core.latents import Batch
from omniforcing.data.tensors import TensorShards
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.pipeline.cluster.config import Strategy
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.probe import training_probe
from omniforcing.training.config import OptimiserConfig
from omniforcing.training.loop import CURVES, fit
from omniforcing.training.sharding import Sharding, is_sharded, save_sharded
from omniforcing.training.stages import StageModule, TrainingOptions


def open_shards(stage: Stage, folder: str, split: str = "train") -> TensorShards:
    """Latents or trajectories of the preset's clip length."""
    return TensorShards(stage.input(folder), split, stage.config.clips.latent_counts)


def open_student(stage: Stage, source: str) -> DualStream:
    """The student as a stage left it, with fresh sinks if that one had none; without memory if it is to be sharded."""
    config = stage.config
    return load_model(
        stage.input(source),
        config.student.sinks,
        stabiliser=config.student.stabiliser,
        fresh=True,
        meta=config.cluster.sharded,
        checkpoint_activations=config.trainer.checkpoint_activations,
    )


def open_teachers(stage: Stage, count: int) -> list[DualStream]:
    """So many models of the teacher's weights; without memory if they are to be sharded."""
    config = stage.config
    return [
        load_model(
            stage.input("teacher"),
            sinks=0,
            meta=config.cluster.sharded,
            checkpoint_activations=config.trainer.checkpoint_activations,
        )
        for _ in range(count)
    ]


def training_options(config: Config) -> TrainingOptions:
    """Micro-batches and sharding, as a config sets them."""
    sharded = sharding(config) if config.cluster.sharded else None
    return TrainingOptions(config.trainer.accumulate, sharded)


def train_and_publish(
    stage: Stage, module: StageModule, data: TensorShards, optim: OptimiserConfig
) -> None:
    """Fit a module on shuffled batches, publish its EMA weights, and record curves and largest gradient norms."""
    if optim.steps:
        _train(stage, module, data, optim)
    else:
        # Left as it starts: an ablation that skips the stage.
        atomic_write(stage.work / CURVES, "step\n")
    publish_model(stage, module)
    stage.curves(stage.work / CURVES)
    stage.metrics({"steps": optim.steps, **module.summary()})


def _train(stage: Stage, module: StageModule, data: TensorShards, optim: OptimiserConfig) -> None:
    config = stage.config
    every = min(config.trainer.checkpoint_every, optim.steps)

    def batches(epoch: int) -> Iterator[Batch]:
        return data.batches(optim.batch, every, config.seed, epoch)

    fit(
        module,
        batches,
        steps=optim.steps,
        work=stage.work,
        trainer=config.trainer,
        log=stage.log_metrics,
        # What a probe samples with wants whole weights.
        probe=None if config.cluster.sharded else training_probe(stage, module),
        name=stage.name,
        sharded=config.cluster.sharded,
    )


def sharding(config: Config) -> Sharding:
    """How a config shards its models."""
    hybrid = config.cluster.strategy is Strategy.hybrid
    group = config.cluster.shard_size or int(os.environ["LOCAL_WORLD_SIZE"])
    return Sharding(
        group if hybrid else None,
        torch.bfloat16 if config.trainer.precision == "bf16-mixed" else None,
    )


def publish_model(stage: Stage, module: StageModule) -> None:
    """Write the EMA weights as the stage's output."""
    with stage.publish() as folder:
        if is_sharded(module.ema.model):
            save_sharded(module.ema.model, folder)
        elif stage.first:
            save_model(module.ema.model, folder)
