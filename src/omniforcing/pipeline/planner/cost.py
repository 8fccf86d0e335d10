"""Cost of a training stage on a cluster: bytes per GPU, seconds per update.

Sizes come from the architecture, activations from a trace of the stage's own training step
(``trace.py``). Assumptions: FSDP2 with parameters that are gathered and computed in bf16 under
``bf16-mixed``, and kept in fp32 where they are sharded. Times assume the sustained speed of a GPU
and of its links, which are options. A test holds memory against measurements; times are estimates.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch

from omniforcing.distill.dmd import DistributionMatching
from omniforcing.model.attention import SITES
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.planner.networks import BUILDERS, Sizes
from omniforcing.pipeline.planner.results import Results
from omniforcing.pipeline.planner.trace import Trace, deepened, trace_step
from omniforcing.training.stages import TrainingOptions

MASTER = 4  # bytes of a weight, gradient, moment or averaged weight as it is kept: fp32
USABLE = 0.92  # share of a GPU's memory; CUDA itself and gaps between allocations take the rest
# Layers of the networks that are traced. The peak of a single layer is at another moment than the
# peaks of several, and the difference would be multiplied by all layers of a deep network.
DEPTHS = (2, 3)
TRACED_CRITIC_STEPS = 2
# Layers whose weights are gathered at a time: one computes, and FSDP2 copies the next out of the
# buffer into which it was gathered.
PREFETCHED = 3
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
# Prefix of each stream in names of the transformer's config.
_WIDTHS = (("video", ""), ("audio", "audio_"))


@dataclass(frozen=True)
class Cluster:
    """GPUs to train on.

    Attributes:
        gpus: number of GPUs.
        memory: memory of a GPU, bytes.
        node: GPUs per machine.
        flops: sustained speed of a GPU, FLOP/s.
        link: speed between GPUs of a machine, bytes per second and GPU.
        network: speed between machines, bytes per second and GPU.
    """

    gpus: int
    memory: float
    node: int = 8
    flops: float = 400e12
    link: float = 300e9
    network: float = 40e9

    def shards(self, sharding: str) -> int:
        """Number of GPUs over which one copy of weights and optimiser states is spread."""
        return {"none": 1, "node": min(self.node, self.gpus), "all": self.gpus}[sharding]


@dataclass(frozen=True)
class Setting:
    """Setting under which a stage runs.

    Attributes:
        sharding: one of ``SHARDINGS``: every GPU holds all states, a share of its node's, or a
            share of all.
        recompute: whether layers are recomputed in the backward pass.
        batch: clips per GPU at a time.
        accumulation: passes per update.
    """

    sharding: str
    recompute: bool
    batch: int = 1
    accumulation: int = 1

    def __str__(self) -> str:
        layers = "recompute" if self.recompute else "keep"
        return f"{self.sharding:<5} {layers:<10}{self.batch:>3} x {self.accumulation:<3}"


class Held(NamedTuple):
    """Frozen weights that are held in fewer bytes.

    Attributes:
        numbers: how many there are, of which autocast keeps no copy.
        saved: bytes that this saves.
    """

    numbers: int
    saved: int


class StageCost:
    """Cost of one stage of a preset at its real sizes.

    Args:
        name: the stage.
        config: configuration of the training.
        sizes: sizes of the networks and of the data.
        depths: layers of the two networks that are traced and extrapolated to the real depth; None
            to trace the real depth.

    Attributes:
        parameters: number of parameters of each network, by column; of adapters their own.
        adapted: columns of the networks that are adapters on the teacher's weights.
        layer: number of parameters of one layer.
        held: what ``trainer.frozen`` saves.
        moment_bytes: bytes of all optimiser moments.
    """

    def __init__(
        self, name: str, config: Config, sizes: Sizes, depths: tuple[int, int] | None = DEPTHS
    ) -> None:
        self.name, self.config, self.sizes, self.depths = name, config, sizes, depths
        self._results = Results()
        self.mixed = config.trainer.precision == "bf16-mixed"
        self.dtype = torch.bfloat16 if self.mixed else torch.float32
        self.layers = sizes.core["num_layers"]
        counted = BUILDERS[name](config, sizes, torch.float32)
        student = counted.model
        self.parameters = {"weights": _count(student)}
        # Networks that are adapters on the teacher's weights.
        self.adapted = {"weights"} if student.base is not None else set()
        if student.base is not None:
            self.parameters["teacher"] = _count(student.base)
        if isinstance(counted, DistributionMatching):
            self.parameters["critic"] = _count(counted.critic)
            self.parameters["teacher"] = _count(counted.frozen[0])
            if counted.critic.base is not None:
                self.adapted.add("critic")
        block = student.core.transformer_blocks[0]
        self.layer = _count(block)
        linears = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
        count, outputs = sum(map(_count, linears)), sum(m.out_features for m in linears)
        weights = sum(m.weight.numel() for m in linears)
        self.held = {
            "fp32": Held(0, 0),
            "bf16": Held(self.layers * count, self.layers * 2 * count),
            # A scale for each output besides.
            "int8": Held(
                self.layers * weights, self.layers * ((MASTER - 1) * weights - MASTER * outputs)
            ),
        }[config.trainer.frozen]
        self.moment_bytes = 0
        for optimiser in counted.configure_optimizers():
            # AdamW keeps two moments of every parameter, Muon one.
            adamw = not isinstance(optimiser, torch.optim.Muon)
            each = 2 * self._size(config.trainer.moments) if adamw else MASTER
            for group in optimiser.param_groups:
                self.moment_bytes += each * sum(p.numel() for p in group["params"])

    @staticmethod
    def _size(held: str) -> int:
        """Bytes of a GPU that a value takes; ``held`` is a word of ``trainer``'s keys."""
        return {"fp32": MASTER, "bf16": 2, "cpu": 0}[held]

    @cache  # noqa: B019  # there are a few stages, which live as long as the command
    def traced(self, recompute: bool, layers: int, batch: int) -> Trace:
        """Trace a step on ``batch`` clips with networks of ``layers`` layers."""
        sizes = replace(self.sizes.with_layers(layers), checkpoint_activations=recompute)
        states = len(self.config.student.sigmas) + 1 if self.name == "causal_ode" else 0
        trainer = self.config.trainer
        # What is held in int8 is computed with otherwise; bf16 is the precision of all in a trace.
        frozen = trainer.frozen if trainer.frozen == "int8" else "fp32"
        options = TrainingOptions(batched_guidance=trainer.batched_guidance, frozen=frozen)
        module = BUILDERS[self.name](few_critic_steps(self.config), sizes, self.dtype, options)
        # The traced code reads one number from a tensor, the exit step, and gets this answer. Every
        # exit step takes the same memory: earlier denoising steps keep no activations.
        answer = 1 if self.name == "causal_ode" else 0
        clips = sizes.batch(self.config, batch, states)
        return trace_step(module, clips, exit_step=answer, results=self._results)

    def step(self, setting: Setting, share: float) -> tuple[list[tuple[float, float]], Trace]:
        """Trace a step at the real depth.

        Args:
            setting: how the stage runs.
            share: share of the states that a GPU holds.

        Returns:
            Peaks of the step's phases in bytes, as (gradients, everything else), and its counts.
        """
        share = share * MASTER / self.dtype.itemsize
        if self.depths is None:
            trace = self.traced(setting.recompute, self.layers, setting.batch)
            return trace.peaks(share), trace
        few, more = (self.traced(setting.recompute, depth, setting.batch) for depth in self.depths)
        return deepened(few, more, (*self.depths, self.layers), share)

    def caches(self, batch: int) -> float:
        """Bytes of the K/V cache from the end of a training rollout on.

        Keys and values of all blocks are held as written until the blocks that see them have run
        backward.
        """
        if self.name != "self_forcing":
            return 0.0
        config, core = self.config, self.sizes.core
        widths = {
            name: core[f"{prefix}num_attention_heads"] * core[f"{prefix}attention_head_dim"]
            for name, prefix in _WIDTHS
        }
        spatial = self.sizes.grid[0] * self.sizes.grid[1]
        # Nothing reads keys and values of the last block.
        tokens = dict.fromkeys(widths, 0)
        for index in range(config.horizon):
            video, audio = config.student.table.block(index).tokens(spatial, config.student.sinks)
            tokens["video"] += len(video)
            tokens["audio"] += len(audio)
        sites = 0
        for site, (_, keys, _) in SITES.items():
            # Cross-modal attention is as wide as the audio on both sides.
            sites += tokens[keys] * (widths["video"] if site == "video" else widths["audio"])
        return 2 * sites * self.layers * batch * self.dtype.itemsize

    def bytes(
        self, setting: Setting, shards: int, *, replicated: bool = False, foreach: bool = True
    ) -> dict[str, float]:
        """Bytes per GPU at the peak of an update, by ``COLUMNS``.

        Args:
            setting: how the stage runs.
            shards: number of GPUs over which states are spread.
            replicated: whether other GPUs hold all states too, with which DDP averages gradients.
            foreach: whether the optimiser steps over all weights at once, as it does on a GPU.
        """
        peaks, _ = self.step(setting, 1 / shards)
        trainer = self.config.trainer
        kept = {name: MASTER * count / shards for name, count in self.parameters.items()}
        if "teacher" in kept:
            kept["teacher"] -= self.held.saved / shards
        if foreach and trainer.moments == "fp32":
            # The optimiser's temporary copy of all weights that it steps. All gradients exist at
            # that moment, and no activations.
            trained = [kept[name] for name in ("weights", "critic") if name in kept]
            peaks.append((sum(trained), max(trained)))
        gradients, rest = max(peaks, key=sum)
        if replicated:
            # DDP's buckets, which stay from the first update on.
            gradients += sum(kept[name] for name in ("weights", "critic") if name in kept)
        if shards > 1 and {"weights", "critic"} & kept.keys() - self.adapted:
            # Shards of a layer's gradient are made of the whole, when its last part is computed.
            gradients += self.dtype.itemsize * self.layer
        caches = min(self.caches(setting.batch), rest)
        return {
            **dict.fromkeys(COLUMNS, 0.0),
            **kept,
            "ema": self._size(trainer.averages) * self.parameters["weights"] / shards,
            "moments": self.moment_bytes / shards,
            "gradients": gradients,
            "activations": rest - caches,
            "caches": caches,
            "gathered": self._gathered(shards),
        }

    def _gathered(self, shards: int) -> float:
        """Bytes of weights in the precision that they are computed with.

        Autocast keeps bf16 copies of all weights; FSDP gathers those of a few layers at a time.
        """
        size = self.dtype.itemsize
        if shards == 1:
            count = sum(self.parameters.values()) - self.held.numbers
            return float(size * count if self.mixed else 0)
        outside = 0
        for name, count in self.parameters.items():
            # An adapter is small: all of it counts, although a few layers of it are gathered.
            outside += count if name in self.adapted else count - self.layers * self.layer
        return float(size * (outside + PREFETCHED * self.layer))

    def seconds(self, setting: Setting, cluster: Cluster) -> float:
        """Estimate the time of an update: computing or moving weights, which overlap.

        The longer of both counts.
        """
        _, counts = self.step(setting, 1.0)
        flops, backwards = counts.flops, counts.backwards
        forwards: dict[str, float] = dict(counts.forwards)
        if self.name in ("bidirectional_dmd", "self_forcing"):
            # The trace exits at the first denoising step and has few critic updates. In training
            # the exit is drawn uniformly, so (steps - 1) / 2 forwards come before it on average.
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
            # Weights are gathered for every pass, gradients are scattered once. An adapter's passes
            # gather the weights below it too.
            below = self.parameters["teacher"] if name in self.adapted else 0
            seconds += away * (count + below) * self.dtype.itemsize * passes / inside
            seconds += away * count * MASTER * bool(backwards.get(network)) / inside
            if copies > 1 and backwards.get(network):
                # Copies of the model all-reduce their gradients: 2 (n - 1) / n of the bytes each.
                between = cluster.network if shards * copies > cluster.node else cluster.link
                seconds += 2 * MASTER * count / shards * (copies - 1) / copies / between
        return seconds


def few_critic_steps(config: Config) -> Config:
    """Copy a config with few critic updates.

    From the second on, all critic updates of a step take the same memory.
    """
    few = copy.deepcopy(config)
    for dmd in (few.bidirectional_dmd, few.self_forcing):
        dmd.critic_steps = min(TRACED_CRITIC_STEPS, dmd.critic_steps)
    return few


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
