"""Measure what the rows of an ablation cost: a training's minutes and memory, a stream's speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from omniforcing.core.config import digest, project_root, to_dict
from omniforcing.core.files import atomic_dir, read_json, write_json
from omniforcing.data.sources import HELDOUT
from omniforcing.evaluation.samplers import split_clips
from omniforcing.evaluation.speed import measure_stream
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.experiments.ablation import Trial
from omniforcing.pipeline.planner.measured import training_cost
from omniforcing.pipeline.planner.networks import Sizes
from omniforcing.pipeline.stages.shared.training import training_options
from omniforcing.streaming.artifact import StreamSettings, write_artifact
from omniforcing.streaming.engine import Engine

ROUNDS = 5
SPEEDS = ("ttfc_s", "block_p50_s")


def compare(trials: Mapping[str, Trial]) -> dict[str, dict[str, Any]]:
    """Measure training and stream of every row on this machine.

    Args:
        trials: baseline and variants by row.

    Returns:
        By row ``minutes`` of all updates, ``peak_mb`` and ``recomputed_mb`` of the largest stage
        and all three by stage in ``training``, ``ttfc_s`` and ``block_p50_s``. Trainings on a
        cluster are not measured.
    """
    speeds = _speeds(trials)
    found = {}
    for name, trial in trials.items():
        costs = _training(trial)
        found[name] = {**speeds[name], "training": costs}
        if costs:
            found[name]["minutes"] = sum(cost["minutes"] for cost in costs.values())
            for peak in ("peak_mb", "recomputed_mb"):
                found[name][peak] = max(cost[peak] for cost in costs.values())
    return found


def _training(trial: Trial) -> dict[str, dict[str, float]]:
    """Measure updates of a configuration, unless that was done in this scratch folder already."""
    config = trial.config
    if config.cluster.address or config.cluster.sharded:
        return {}
    key = digest({"config": to_dict(config), "device": config.trainer.device})
    path = trial.work / "costs" / f"{key[:16]}.json"
    if not path.is_file():
        torch.set_num_threads(config.trainer.threads)
        sizes = replace(Sizes.from_config(config, project_root()), device=config.trainer.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, training_cost(config, sizes, training_options(config)))
    costs: dict[str, dict[str, float]] = read_json(path)
    return costs


def _speeds(trials: Mapping[str, Trial]) -> dict[str, dict[str, float]]:
    """Time the stream of every row, in turns, because a machine's speed changes by the minute.

    Returns:
        Medians of the rounds.
    """
    artifacts = {name: _artifact(trial) for name, trial in trials.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in trials}
    for _ in range(ROUNDS):
        for name, trial in trials.items():
            rounds[name].append(_speed(artifacts[name], trial.config, _prompt(trial)))
    return {
        name: {key: median(figures[key] for figures in found) for key in SPEEDS}
        for name, found in rounds.items()
    }


def _speed(artifact: Path, config: Config, prompt: str) -> dict[str, float]:
    engine = Engine(artifact, config.trainer.device)
    seconds = config.clips.seconds
    return measure_stream(lambda: (c.timing for c in engine.stream(prompt, seconds)), repeats=1)


def _prompt(trial: Trial) -> str:
    return split_clips(trial.data / "shards", HELDOUT, 1).captions[0]


def _artifact(trial: Trial) -> Path:
    folder, codec, config = (
        trial.work / "artifacts" / trial.label,
        trial.data / "codec",
        trial.config,
    )
    if not folder.exists():
        settings = StreamSettings.from_config(
            config.preset,
            config.student,
            config.clips.latent_counts,
            read_json(codec / "codec.json"),
        )
        with atomic_dir(folder) as partial:
            write_artifact(partial, trial.weights, codec, settings, {})
    return folder
