"""Plans of a training on a cluster: which settings of each stage fit, and which is fastest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from tqdm import tqdm

from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.planner.cost import (
    COLUMNS,
    SHARDINGS,
    USABLE,
    Cluster,
    Setting,
    StageCost,
)
from omniforcing.pipeline.planner.networks import BUILDERS, Sizes, trained_stages
from omniforcing.pipeline.planner.stream import StreamMemory, as_table, latents_memory, stream_plans

Planned = list[tuple[StageCost, list["StagePlan"]]]
# Most GPUs for which a plan is looked for.
MOST_GPUS = 4096


@dataclass(frozen=True)
class StagePlan:
    """One stage under one setting.

    Attributes:
        stage: name of the stage.
        setting: how it runs.
        bytes: bytes per GPU at the peak of an update, by ``COLUMNS``.
        seconds: estimated seconds per update.
        fits: whether the bytes fit the GPU.
    """

    stage: str
    setting: Setting
    bytes: dict[str, float]
    seconds: float
    fits: bool

    @property
    def total(self) -> float:
        """Bytes per GPU at the peak of an update."""
        return sum(self.bytes.values())

    def __str__(self) -> str:
        parts = "".join(f"{self.bytes[name] / 1e9:>{len(name) + 2}.1f}" for name in COLUMNS)
        mark = "fits" if self.fits else "no"
        costs = f"{parts}{self.total / 1e9:>8.1f}  {mark:<5}{self.seconds:>8.1f}"
        return f"{self.stage:<18}{self.setting}{costs}"


def make_plans(stage: StageCost, cluster: Cluster, batch: int | None = None) -> list[StagePlan]:
    """Plan every sharding with and without recomputing, each with the most clips that fit.

    Args:
        stage: cost of the stage.
        cluster: the GPUs.
        batch: clips per update of all GPUs together; None for the preset's, or one per GPU if that
            is more.
    """
    wanted = max(batch or getattr(stage.config, stage.name).optim.batch, cluster.gpus)
    plans = []
    for sharding, recompute in product(shardings_of(cluster, stage.config), (False, True)):
        each, best = -(-wanted // cluster.gpus), None
        for size in (2**power for power in range(each.bit_length())):
            plan = make_plan(stage, cluster, Setting(sharding, recompute, size, -(-each // size)))
            best = plan if best is None or plan.fits else best
        assert best is not None
        plans.append(best)
    return plans


def shardings_of(cluster: Cluster, config: Config) -> list[str]:
    """Ways to spread states that differ: on one machine ``node`` and ``all`` are the same.

    Quantised weights are not sharded.
    """
    if config.trainer.frozen == "int8":
        return ["none"]
    different = {cluster.shards(sharding): sharding for sharding in reversed(SHARDINGS)}
    return list(reversed(different.values()))


def make_plan(stage: StageCost, cluster: Cluster, setting: Setting) -> StagePlan:
    """Plan a stage under one setting."""
    shards = cluster.shards(setting.sharding)
    taken = stage.bytes(setting, shards, replicated=shards == 1 < cluster.gpus)
    fits = sum(taken.values()) <= USABLE * cluster.memory
    return StagePlan(stage.name, setting, taken, stage.seconds(setting, cluster), fits)


def advise(stage: StageCost, cluster: Cluster, plans: list[StagePlan]) -> str:
    """Name the fastest setting that fits, or the number of GPUs that would be needed."""
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        best = min(fitting, key=lambda plan: plan.seconds)
        s = best.setting
        kept = "recompute layers" if s.recompute else "keep activations"
        spread = {
            "none": "no sharding",
            "node": "shard within a node",
            "all": "shard over all GPUs",
        }[s.sharding]
        return (
            f"{stage.name}: {spread}, {kept}, {s.batch} per GPU x {s.accumulation}: "
            f"{best.total / 1e9:.1f} GB per GPU, about {best.seconds:.1f} s per update"
        )
    gpus = cluster.gpus
    if stage.config.trainer.frozen == "int8":
        return (
            f"{stage.name}: nothing fits, and quantised weights cannot be sharded; "
            "with trainer.frozen=bf16 they can"
        )
    while gpus < MOST_GPUS:
        gpus *= 2
        more = Cluster(**{**asdict(cluster), "gpus": gpus})
        if make_plan(stage, more, Setting("all", True)).fits:
            return (
                f"{stage.name}: nothing fits {cluster.gpus} GPUs; "
                f"sharded over {gpus} with recomputed layers it does"
            )
    return (
        f"{stage.name}: nothing fits, on however many GPUs; "
        "the activations of one clip are too large for one"
    )


def check_stage(name: str | None) -> None:
    """Check the name of a stage to plan.

    Raises:
        OmniForcingError: if it is not a stage that trains a transformer.
    """
    if name is not None and name not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise OmniForcingError(
            "pipeline.unknown-stage",
            f"stage {name!r} is not planned; known: {known}{did_you_mean(name, BUILDERS)}",
        )


def report(
    config: Config,
    root: Path,
    cluster: Cluster,
    batch: int | None = None,
    only: str | None = None,
    as_json: bool = False,
) -> str:
    """Plan the training of a configuration on a cluster, and its stream, as tables or JSON.

    Args:
        config: configuration of the training.
        root: the checkout, below which weights are looked for.
        cluster: the GPUs.
        batch: clips per update of all GPUs; None for the configuration's, at least one per GPU.
        only: the only stage to plan; None for all.
        as_json: whether to write JSON.

    Raises:
        OmniForcingError: if ``only`` is not a stage that trains a transformer.
    """
    check_stage(only)
    sizes = Sizes.from_config(config, root)
    names = [only] if only else trained_stages(config)
    planned = []
    for name in tqdm(names, "tracing", unit="stage", leave=False):
        stage = StageCost(name, config, sizes)
        planned.append((stage, make_plans(stage, cluster, batch)))
    streams = stream_plans(config, sizes)
    return (_as_json if as_json else _as_text)(config, cluster, planned, streams)


def _as_json(
    config: Config, cluster: Cluster, planned: Planned, streams: Mapping[str, StreamMemory]
) -> str:
    stages = [
        {
            "parameters": stage.parameters,
            "plans": [{**asdict(plan), "total": plan.total} for plan in plans],
        }
        for stage, plans in planned
    ]
    names = [stage.name for stage, _ in planned]
    answer = {
        "preset": config.preset,
        "cluster": asdict(cluster),
        "usable": USABLE * cluster.memory,
        "stages": dict(zip(names, stages, strict=True)),
        "latents": latents_memory(config),
        "stream": {name: {**asdict(plan), "total": plan.total} for name, plan in streams.items()},
    }
    return json.dumps(answer, indent=2)


def _as_text(
    config: Config, cluster: Cluster, planned: Planned, streams: Mapping[str, StreamMemory]
) -> str:
    stage = planned[0][0]
    counts, spatial = config.clips.latent_counts, stage.sizes.grid[0] * stage.sizes.grid[1]
    network = "teacher" if "weights" in stage.adapted else "weights"
    parameters = f"{stage.parameters[network] / 1e9:.4g} B parameters"
    size = f"{parameters}, {counts.video * spatial} + {counts.audio} tokens a clip"
    usable = USABLE * cluster.memory / 1e9
    gpus = f"{cluster.gpus} GPUs of {cluster.memory / 1e9:g} GB ({usable:.1f} usable)"
    heads = "".join(f"{name:>{len(name) + 2}}" for name in COLUMNS)
    lines = [
        f"preset {config.preset}: {size}",
        f"{gpus}, {cluster.node} a node; GB per GPU at the fullest moment, seconds per update",
        "",
    ]
    columns = f"{'stage':<18}{'shard':<6}{'layers':<10}{'batch':<9}"
    lines.append(f"{columns}{heads}{'all':>8}  {'':<5}{'seconds':>8}")
    lines += [str(plan) for _, plans in planned for plan in plans]
    lines += ["", *(advise(stage, cluster, plans) for stage, plans in planned)]
    stream = as_table(streams, latents_memory(config))
    return "\n".join([*lines, "", stream] if stream else lines)
