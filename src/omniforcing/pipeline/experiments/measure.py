"""Measure a variant of the ablation with the samplers and settings of stage ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from omniforcing.data.sources import HELDOUT, TRAIN
from omniforcing.evaluation.evaluate import DRIFT_FACTOR, EvaluationInputs, evaluate
from omniforcing.evaluation.nearest import TrainingClips
from omniforcing.evaluation.samplers import split_clips
from omniforcing.pipeline.experiments.ablation import FINAL, Trial
from omniforcing.pipeline.stages.shared.factory import open_factory


def measure(trial: Trial) -> Mapping[str, Any]:
    """Measure a variant's final student as stage ``evaluate`` measures its models.

    Returns:
        The student's figures by name.
    """
    torch.set_num_threads(trial.config.trainer.threads)
    config, settings, seconds = trial.config, trial.config.evaluate, trial.config.clips.seconds
    factory = open_factory(config, trial.data / "codec", trial.data / "latents")
    shards = trial.data / "shards"
    training = TrainingClips.collect(
        split_clips(shards, TRAIN, settings.train_clips), trial.work / "train"
    )
    inputs = EvaluationInputs(
        split_clips(shards, HELDOUT, settings.clips),
        factory.reconstruct,
        models={trial.label: factory.sampler(FINAL, trial.weights, seconds)},
        rollouts={trial.label: factory.sampler(FINAL, trial.weights, DRIFT_FACTOR * seconds)},
        work=trial.work,
        config=settings,
        seed=config.seed,
    )
    found = evaluate(inputs, training)
    return found.models[trial.label]
