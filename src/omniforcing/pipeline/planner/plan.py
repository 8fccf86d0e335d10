"""What a training takes of a cluster's GPUs, before one is paid for: bytes per GPU, seconds per update, which settings fit.

Sizes come from the architecture, activations from a trace of the stage's own training step (``trace.py``). What is assumed:
FSDP2 with parameters gathered and computed in bf16 under ``bf16-mixed``, everything that is sharded kept in fp32, and for
times the sustained speed of a GPU and of its links, which are options. Memory is held against measurements by a test; times
are estimates.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.model.attention import SITES
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.planner.networks import BUILDERS, Sizes, trained_stages
from omniforcing.pipeline.planner.trace import Trace, deepened, trace_step

MASTER = 4  # bytes of a weight, gradient, moment or mean as it is kept
USABLE = 0.92  # of a GPU's memory; the rest is CUDA's own and lost between allocations
DEPTHS = (1, 2)  # layers of the traced networks
TRACED_CRITIC_STEPS = 2
PREFETCHED = 2  # layers whose weights are gathered at a time
COLUMNS = (
    "weights",
    "critic",
    "teacher",
    "ema",
    "moments",
    "gradients",
    "activations",
    "caches",
    "gathered",
)
SHARDINGS = ("none", "node", "all")


@dataclass(frozen=True)
class Cluster:
    """GPUs of ``memory`` bytes, ``node`` of them in a machine; sustained FLOP/s, and bytes per second between GPUs of one
    machine and between machines, per GPU."""

    gpus: int
    memory: float
    node: int = 8
    flops: float = 400e12
    link: float = 300e9
    network: float = 40e9

    def shards(self, sharding: str) -> int:
        """Over how many GPUs a copy of the states is spread."""
        return {"none": 1, "node": min(self.node, self.gpus), "all": self.gpus}[sharding]


@dataclass(frozen=True)
class Setting:
    """How a stage runs: states spread over no GPU but its own, a node's or all; layers recomputed in the backward or not;
    clips per GPU at a time, and how many such passes make an update."""

    sharding: str
    recompute: bool
    batch: int = 1
    accumulation: int = 1

    def __str__(self) -> str:
        return f"{self.sharding:<5} {'recompute' if self.recompute else 'keep':<10}{self.batch:>3} x {self.accumulation:<3}"


@dataclass(frozen=True)
class Plan:
    """One stage under one setting: bytes per GPU by ``COLUMNS``, seconds per update."""

    stage: str
    setting: Setting
    bytes: dict[str, float]
    seconds: float
    fits: bool

    @property
    def total(self) -> float:
        return sum(self.bytes.values())

    def __str__(self) -> str:
        parts = "".join(f"{self.bytes[name] / 1e9:>{len(name) + 2}.1f}" for name in COLUMNS)
        mark = "fits" if self.fits else "no"
        return f"{self.stage:<18}{self.setting}{parts}{self.total / 1e9:>8.1f}  {mark:<5}{self.seconds:>8.1f}"


class Stage:
    """What one stage of a preset takes, at its real sizes.

    Args:
        depths: layers of the two networks that are traced and carried on to the real depth; None: the real depth is traced.
    """

    def __init__(
        self, name: str, config: Config, sizes: Sizes, depths: tuple[int, int] | None = DEPTHS
    ) -> None:
        self.name, self.config, self.sizes, self.depths = name, config, sizes, depths
        self.mixed = config.trainer.precision == "bf16-mixed"
        self.dtype = torch.bfloat16 if self.mixed else torch.float32
        self.layers = sizes.core["num_layers"]
        counted = BUILDERS[name](config, sizes, torch.float32)
        student = counted.model
        assert isinstance(student, torch.nn.Module)
        self.parameters = {"weights": _count(student)}
        if hasattr(counted, "critic"):
            self.parameters |= {
                "critic": _count(counted.critic),
                "teacher": _count(counted.frozen[0]),
            }  # type: ignore[index]
        block = student.core.transformer_blocks[0]  # type: ignore[index,union-attr]
        self.layer = _count(block)
        # AdamW keeps two moments of every number, Muon one.
        optimisers = counted.configure_optimizers()
        self.moments = sum(
            (1 if isinstance(optimiser, torch.optim.Muon) else 2) * p.numel()
            for optimiser in optimisers
            for group in optimiser.param_groups
            for p in group["params"]
        )

    @cache  # noqa: B019  # a handful of stages, which live as long as the command
    def traced(self, recompute: bool, layers: int, batch: int) -> Trace:
        """The step of ``batch`` clips with so many layers."""
        sizes = replace(self.sizes.with_layers(layers), checkpoint_activations=recompute)
        states = len(self.config.student.sigmas) + 1 if self.name == "causal_ode" else 0
        module = BUILDERS[self.name](_few_critic_steps(self.config), sizes, self.dtype)
        # Whatever a mask or a count asks for is answered with this; the earliest exit holds what the latest one does.
        answer = 1 if self.name == "causal_ode" else 0
        return trace_step(module, sizes.batch(self.config, batch, states), exit_step=answer)

    def step(self, setting: Setting, share: float) -> tuple[list[tuple[float, float]], Trace]:
        """Peaks of the phases of a step, and its counts, at the real depth."""
        share = share * MASTER / self.dtype.itemsize
        if self.depths is None:
            trace = self.traced(setting.recompute, self.layers, setting.batch)
            return trace.peaks(share), trace
        few, more = (self.traced(setting.recompute, depth, setting.batch) for depth in self.depths)
        return deepened(few, more, (*self.depths, self.layers), share)

    def caches(self, batch: int) -> float:
        """Bytes of the K/V of past blocks at the end of a training rollout: as written, and turned to the present."""
        if self.name != "self_forcing":
            return 0.0
        config, core = self.config, self.sizes.core
        widths = {
            name: core[f"{prefix}num_attention_heads"] * core[f"{prefix}attention_head_dim"]
            for name, prefix in _WIDTHS
        }
        spatial = self.sizes.grid[0] * self.sizes.grid[1]
        past = [
            config.student.table.block(b)
            for b in config.student.table.visible(config.horizon, config.student.window)[:-1]
        ]
        spans = [
            dict(zip(("video", "audio"), b.tokens(spatial, config.student.sinks), strict=True))
            for b in past
        ]
        tokens = {stream: sum(len(span[stream]) for span in spans) for stream in ("video", "audio")}
        # Cross-modal attention is as wide as the audio on both sides.
        sites = sum(
            tokens[keys] * (widths["video"] if site == "video" else widths["audio"])
            for site, (_, keys, _) in SITES.items()
        )
        return 2 * 2 * sites * self.layers * batch * self.dtype.itemsize

    def bytes(self, setting: Setting, shards: int, *, foreach: bool = True) -> dict[str, float]:
        """Bytes per GPU at the fullest moment of an update.

        Args:
            foreach: whether the optimiser steps over all weights at once, as it does on a GPU.
        """
        peaks, _ = self.step(setting, 1 / shards)
        kept = {name: MASTER * count / shards for name, count in self.parameters.items()}
        if foreach:
            # A whole copy of what is stepped, while the gradients are all there and activations are not.
            trained = [kept[name] for name in ("weights", "critic") if name in kept]
            peaks.append((sum(trained), max(trained)))
        gradients, rest = max(peaks, key=sum)
        caches = min(self.caches(setting.batch), rest)
        return {
            **dict.fromkeys(COLUMNS, 0.0),
            **kept,
            "ema": kept["weights"],
            "moments": MASTER * self.moments / shards,
            "gradients": gradients,
            "activations": rest - caches,
            "caches": caches,
            "gathered": self._gathered(shards),
        }

    def _gathered(self, shards: int) -> float:
        """Weights in the form they are computed with: autocast keeps copies of all, FSDP those of a few layers."""
        size = self.dtype.itemsize
        if shards == 1:
            return float(size * sum(self.parameters.values()) if self.mixed else 0)
        outside = [count - self.layers * self.layer for count in self.parameters.values()]
        return float(size * (sum(outside) + PREFETCHED * self.layer))

    def seconds(self, setting: Setting, cluster: Cluster) -> float:
        """An estimate of an update's time: the longer of computing and of moving weights, which overlap."""
        _, counts = self.step(setting, 1.0)
        flops, backwards = counts.flops, counts.backwards
        forwards: dict[str, float] = dict(counts.forwards)
        if self.name in ("bidirectional_dmd", "self_forcing"):
            # The exit is drawn evenly from the few steps, and the trace took the first and fewer critic steps.
            early = (len(self.config.student.sigmas) - 1) / 2
            more = getattr(self.config, self.name).critic_steps - backwards["critic"]
            one = (4 if setting.recompute else 3) * counts.learning["critic"] / backwards["critic"]
            flops += early * counts.learning["model"] + more * one
            forwards["model"] += early * backwards["model"]
            forwards["critic"] += more
            backwards = {**backwards, "critic": backwards["critic"] + more}
        computing = flops / cluster.flops
        return setting.accumulation * max(
            computing, self._moving(forwards, backwards, setting, cluster)
        )

    def _moving(
        self,
        forwards: Mapping[str, float],
        backwards: Mapping[str, float],
        setting: Setting,
        cluster: Cluster,
    ) -> float:
        shards = cluster.shards(setting.sharding)
        away, copies = (shards - 1) / shards, cluster.gpus // shards
        inside = cluster.link if shards <= cluster.node else cluster.network
        seconds = 0.0
        for name, network in (("weights", "model"), ("critic", "critic"), ("teacher", "teacher")):
            count = self.parameters.get(name, 0)
            passes = forwards.get(network, 0) + backwards.get(network, 0)
            seconds += (
                away
                * count
                * (self.dtype.itemsize * passes + MASTER * bool(backwards.get(network)))
                / inside
            )
            if copies > 1 and backwards.get(network):
                between = cluster.network if shards * copies > cluster.node else cluster.link
                seconds += 2 * MASTER * count / shards * (copies - 1) / copies / between
        return seconds


def _few_critic_steps(config: Config) -> Config:
    """The config with as many critic steps as a trace needs: the third one holds what the second one does."""
    few = copy.deepcopy(config)
    for dmd in (few.bidirectional_dmd, few.self_forcing):
        dmd.critic_steps = min(TRACED_CRITIC_STEPS, dmd.critic_steps)
    return few


_WIDTHS = (("video", ""), ("audio", "audio_"))


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def make_plans(stage: Stage, cluster: Cluster, batch: int | None = None) -> list[Plan]:
    """Each way to shard, with and without recomputing, at the most clips per GPU that fit and divide the global batch.

    Args:
        batch: clips per update of all GPUs together; None: the preset's, or one per GPU if that is more.
    """
    wanted = max(batch or getattr(stage.config, stage.name).optim.batch, cluster.gpus)
    plans = []
    shardings = [
        s
        for i, s in enumerate(SHARDINGS)
        if cluster.shards(s) not in map(cluster.shards, SHARDINGS[:i])
    ]
    for sharding, recompute in product(shardings, (False, True)):
        each, best = -(-wanted // cluster.gpus), None
        for size in (2**power for power in range(each.bit_length())):
            plan = _plan(stage, cluster, Setting(sharding, recompute, size, -(-each // size)))
            best = plan if best is None or plan.fits else best
        assert best is not None
        plans.append(best)
    return plans


def _plan(stage: Stage, cluster: Cluster, setting: Setting) -> Plan:
    taken = stage.bytes(setting, cluster.shards(setting.sharding))
    fits = sum(taken.values()) <= USABLE * cluster.memory
    return Plan(stage.name, setting, taken, stage.seconds(setting, cluster), fits)


def advise(stage: Stage, cluster: Cluster, plans: list[Plan]) -> str:
    """One sentence: the fastest setting that fits, or how many GPUs would be needed."""
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
            f"{stage.name}: {spread}, {kept}, {s.batch} per GPU x {s.accumulation}: {best.total / 1e9:.1f} GB per GPU, "
            f"about {best.seconds:.1f} s per update"
        )
    gpus = cluster.gpus
    while gpus < 4096:
        gpus *= 2
        more = Cluster(**{**asdict(cluster), "gpus": gpus})
        if _plan(stage, more, Setting("all", True)).fits:
            return f"{stage.name}: nothing fits {cluster.gpus} GPUs; sharded over {gpus} with recomputed layers it does"
    return f"{stage.name}: nothing fits, on however many GPUs; the activations of one clip are too large for one"


def report(
    config: Config,
    root: Path,
    cluster: Cluster,
    batch: int | None = None,
    only: str | None = None,
    as_json: bool = False,
) -> str:
    """Plan the training of a configuration on a cluster, as tables or json.

    Args:
        config: what is trained.
        root: the checkout, for sizes that its codec has settled.
        cluster: GPUs.
        batch: clips per update of all GPUs; the configuration's, at least one per GPU, if None.
        only: a stage, to plan it alone.
        as_json: whether to write json.

    Raises:
        OmniForcingError: for a stage that trains no transformer.
    """
    if only is not None and only not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise OmniForcingError(
            "pipeline.unknown-stage",
            f"stage {only!r} is not planned; known: {known}{did_you_mean(only, BUILDERS)}",
        )
    sizes = Sizes.of(config, root)
    names = [only] if only else trained_stages(config)
    planned = []
    for name in tqdm(names, "tracing", unit="stage", leave=False):
        stage = Stage(name, config, sizes)
        planned.append((stage, make_plans(stage, cluster, batch)))
    return (_as_json if as_json else _as_text)(config, cluster, planned)


def _as_json(config: Config, cluster: Cluster, planned: list[tuple[Stage, list[Plan]]]) -> str:
    stages = [
        {
            "parameters": stage.parameters,
            "plans": [{**asdict(plan), "total": plan.total} for plan in plans],
        }
        for stage, plans in planned
    ]
    found = {"preset": config.preset, "cluster": asdict(cluster), "usable": USABLE * cluster.memory}
    return json.dumps(
        {**found, "stages": dict(zip((stage.name for stage, _ in planned), stages, strict=True))},
        indent=2,
    )


def _as_text(config: Config, cluster: Cluster, planned: list[tuple[Stage, list[Plan]]]) -> str:
    stage = planned[0][0]
    counts, spatial = config.clips.latent_counts, stage.sizes.grid[0] * stage.sizes.grid[1]
    size = f"{stage.parameters['weights'] / 1e9:.4g} B parameters, {counts.video * spatial} + {counts.audio} tokens a clip"
    usable = USABLE * cluster.memory / 1e9
    room = f"{cluster.gpus} GPUs of {cluster.memory / 1e9:g} GB ({usable:.1f} usable), {cluster.node} a node"
    heads = "".join(f"{name:>{len(name) + 2}}" for name in COLUMNS)
    lines = [
        f"preset {config.preset}: {size}",
        f"{room}; GB per GPU at the fullest moment, seconds per update",
        "",
    ]
    lines += [
        f"{'stage':<18}{'shard':<6}{'layers':<10}{'batch':<9}{heads}{'all':>8}  {'':<5}{'seconds':>8}"
    ]
    lines += [str(plan) for _, plans in planned for plan in plans]
    return "\n".join([*lines, "", *(advise(stage, cluster, plans) for stage, plans in planned)])
