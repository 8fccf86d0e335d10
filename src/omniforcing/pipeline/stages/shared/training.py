"""Common steps of the four stages that train a transformer: open data and models, fit, publish."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from omniforcing.core.files import atomic_write
from omniforcing.core.latents import Batch
from omniforcing.data.tensors import TensorShards
from omniforcing.distill.config import CausalOdeConfig, DmdConfig
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.pipeline.cluster.config import Strategy
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.adapters import (
    Adapter,
    prepare_adapter,
    publish_adapter,
)
from omniforcing.pipeline.stages.shared.probe import training_probe
from omniforcing.training.adapters import AdaptedStream
from omniforcing.training.config import OptimiserConfig
from omniforcing.training.curves import CURVES
from omniforcing.training.sharding import Sharding, is_sharded, save_sharded
from omniforcing.training.stages import StageModule, TrainingOptions


def open_shards(stage: Stage, folder: str, split: str = "train") -> TensorShards:
    """Open latents or trajectories of the preset's clip length.

    Args:
        stage: the running stage.
        folder: stage that wrote them, ``latents`` or ``trajectories``.
        split: name of the split.
    """
    return TensorShards(stage.input(folder), split, stage.config.clips.latent_counts)


def open_student(stage: Stage, source: str) -> DualStream:
    """Load the student that a stage wrote, with new sinks if it has none.

    A model that will be sharded is loaded on the meta device, without memory.
    """
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
    """Load ``count`` models with the teacher's weights.

    Models that will be sharded are loaded on the meta device, without memory.
    """
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


def open_roles(stage: Stage, config: DmdConfig, source: str | None = None) -> list[DualStream]:
    """Load student, teacher and critic; roles with an adapter share the teacher's weights.

    Args:
        stage: the running stage.
        config: its section.
        source: stage whose weights the student starts from, with sinks; None: the teacher's own,
            without.
    """
    prepared: list[Adapter | None] = [None, None]
    if config.adapter is not None:
        prepared[0] = prepare_adapter(stage, config.adapter, f"{stage.name}.adapter", source)
    if config.critic_adapter is not None:
        key = f"{stage.name}.critic_adapter"
        prepared[1] = prepare_adapter(stage, config.critic_adapter, key)
    for_student, for_critic = prepared
    (teacher,) = open_teachers(stage, 1)
    if for_student is not None:
        student: DualStream = for_student.student_on(teacher, stage, source)
    else:
        student = open_student(stage, source) if source else open_teachers(stage, 1)[0]
    # Another start than the student's: the second factors are zero, but their gradients differ.
    critic = for_critic.on(teacher, stage.config.seed + 1) if for_critic else None
    return [student, teacher, critic or open_teachers(stage, 1)[0]]


def open_causal_student(stage: Stage, config: CausalOdeConfig) -> DualStream:
    """Load the student of Stage II: all its weights, or an adapter on the teacher's."""
    source = config.init.value
    if config.adapter is None:
        return open_student(stage, source)
    adapter = prepare_adapter(stage, config.adapter, f"{stage.name}.adapter", source)
    return adapter.student_on(open_teachers(stage, 1)[0], stage, source)


def training_options(config: Config) -> TrainingOptions:
    """Return the options that a config sets: micro-batches, sharding, and what saves memory."""
    sharded, trainer = sharding(config) if config.cluster.sharded else None, config.trainer
    return TrainingOptions(
        trainer.accumulate,
        sharded,
        batched_guidance=trainer.batched_guidance,
        frozen=trainer.frozen,
        averages=trainer.averages,
        moments=trainer.moments,
    )


def train_and_publish(
    stage: Stage, module: StageModule, data: TensorShards, optim: OptimiserConfig
) -> None:
    """Fit a module on shuffled batches, publish its EMA weights, and write curves and metrics.

    Args:
        stage: the running stage.
        module: the module to train.
        data: clips to train on.
        optim: steps and batch.
    """
    if optim.steps:
        _train(stage, module, data, optim)
    else:
        # An ablation without this stage publishes the initial weights.
        atomic_write(stage.work / CURVES, "step\n")
    publish_model(stage, module)
    stage.write_curves(stage.work / CURVES)
    stage.write_metrics({"steps": optim.steps, **module.summary()})


def _train(stage: Stage, module: StageModule, data: TensorShards, optim: OptimiserConfig) -> None:
    config = stage.config
    # Batches depend on seed and epoch alone, and an epoch ends at a checkpoint: a training that
    # was killed draws the same batches when it continues.
    every = min(config.trainer.checkpoint_every, optim.steps)

    def batches(epoch: int) -> Iterator[Batch]:
        return data.batches(optim.batch, every, config.seed, epoch)

    from omniforcing.training.loop import fit  # Lightning takes seconds to load

    fit(
        module,
        batches,
        steps=optim.steps,
        work=stage.work,
        trainer=config.trainer,
        log=stage.log_metrics,
        # A probe samples with whole weights, which sharded models never have.
        probe=None if config.cluster.sharded else training_probe(stage, module),
        name=stage.name,
        sharded=config.cluster.sharded,
    )


def sharding(config: Config) -> Sharding:
    """Return the sharding of models that a config sets."""
    hybrid = config.cluster.strategy is Strategy.hybrid
    group = config.cluster.shard_size or int(os.environ["LOCAL_WORLD_SIZE"])
    dtype = torch.bfloat16 if config.trainer.precision == "bf16-mixed" else None
    return Sharding(group if hybrid else None, dtype)


def publish_model(stage: Stage, module: StageModule) -> None:
    """Publish the EMA weights; every worker of a sharded model must call it."""
    if isinstance(module.ema.model, AdaptedStream):
        publish_adapter(stage, module.ema.model)
        return
    with stage.publish() as folder:
        if is_sharded(module.ema.model):
            save_sharded(module.ema.model, folder)
        elif stage.is_writer:
            save_model(module.ema.model, folder)
