"""Which machines are large enough: each stage on clusters of many sizes, trained in three ways."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from tqdm import tqdm

from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.planner.cost import USABLE, Cluster, Setting, StageCost
from omniforcing.pipeline.planner.networks import Sizes, trained_stages
from omniforcing.pipeline.planner.plan import StagePlan, check_stage, make_plan, shardings_of

GPUS = (1, 8, 16, 32)
MEMORIES = (24e9, 48e9, 80e9, 141e9)
_LEAN = "trainer={averages: bf16, moments: bf16, batched_guidance: false}"
_BELOW = "adapter: {rank: 16}, muon_lr: null"
_BOTH = f"{_BELOW}, critic_adapter: {{rank: 16}}, critic_muon_lr: null"
_ADAPTERS = (
    f"bidirectional_dmd={{{_BOTH}}}",
    f"causal_ode={{{_BELOW}}}",
    f"self_forcing={{{_BOTH}}}",
)
# Ways to train, the one that needs most first: what each adds to a preset.
WAYS: Mapping[str, tuple[str, ...]] = {
    "all": (),
    "lean": (_LEAN,),
    "adapters": (_LEAN, *_ADAPTERS),
    "int8": (_LEAN, *_ADAPTERS, "trainer.frozen=int8"),
}
_FROZEN = "trainer.frozen=bf16"  # where products are computed in bf16 anyway
LEGEND = {
    "all": "all weights, the preset's own settings",
    "lean": "all weights; means, moments and the teacher in bf16, guidance passes one by one",
    "adapters": "lean, and adapters of rank 16 instead of the weights",
    "int8": "adapters, and the weights below them in int8, on every GPU",
}


@dataclass(frozen=True)
class Choice:
    """What a cluster does with a stage.

    Attributes:
        cluster: the GPUs.
        way: the first of ``WAYS`` that fits, or the one that needs least.
        plan: its fastest setting that fits, or the one that needs least.
    """

    cluster: Cluster
    way: str
    plan: StagePlan

    @property
    def lacking(self) -> float:
        """Bytes per GPU that are too few; below zero where it fits."""
        return self.plan.total - USABLE * self.cluster.memory

    def __str__(self) -> str:
        if not self.plan.fits:
            return f"no: {self.lacking / 1e9:.1f} GB too few"
        return f"{self.way}: {self.plan.total / 1e9:.1f} GB, {self.plan.seconds:.1f} s"


def choose(costs: Mapping[str, StageCost], cluster: Cluster) -> Choice:
    """Choose the first way to train that fits a cluster, and its fastest setting.

    Args:
        costs: cost of one stage by way, in the order of preference.
        cluster: the GPUs. Each takes one clip at a time, and as many passes as the batch needs.
    """
    choice = None
    for way, cost in costs.items():
        wanted = max(getattr(cost.config, cost.name).optim.batch, cluster.gpus)
        passes = -(-wanted // cluster.gpus)
        plans = [
            make_plan(cost, cluster, Setting(sharding, recompute, 1, passes))
            for sharding, recompute in product(shardings_of(cluster, cost.config), (False, True))
        ]
        fitting = [plan for plan in plans if plan.fits]
        if fitting:
            return Choice(cluster, way, min(fitting, key=lambda plan: plan.seconds))
        least = min(plans, key=lambda plan: plan.total)
        if choice is None or least.total < choice.plan.total:
            choice = Choice(cluster, way, least)
    assert choice is not None
    return choice


def smallest(choices: Sequence[Choice]) -> str:
    """Say which is the smallest machine that fits a stage, and what the next smaller one lacks.

    Args:
        choices: of one stage, on every machine.
    """
    ordered = sorted(choices, key=lambda c: (c.cluster.gpus * c.cluster.memory, c.cluster.gpus))
    name = ordered[0].plan.stage
    fitting = [place for place, choice in enumerate(ordered) if choice.plan.fits]
    if not fitting:
        least = min(ordered, key=lambda choice: choice.lacking)
        return f"{name}: fits none; {_machine(least)} {_lacks(least)}"
    first = ordered[fitting[0]]
    sentence = f"{name}: from {_machine(first)} on ({first.way})"
    if fitting[0]:
        below = ordered[fitting[0] - 1]
        sentence += f"; the next smaller, {_machine(below)}, {_lacks(below)}"
    return sentence


def _machine(choice: Choice) -> str:
    return f"{choice.cluster.gpus} x {choice.cluster.memory / 1e9:g} GB"


def _lacks(choice: Choice) -> str:
    return f"would need {choice.lacking / 1e9:.1f} GB more per GPU, even with {choice.way}"


def report_machines(
    overrides: Sequence[str],
    preset: str | None,
    root: Path,
    cluster: Cluster,
    only: str | None = None,
    as_json: bool = False,
) -> str:
    """Plan each stage of a preset on 1 to 32 GPUs of 24 to 141 GB.

    Args:
        overrides: the user's ``key=value``.
        preset: the preset; None for the tracked one.
        root: the checkout.
        cluster: speeds of GPUs and links, and the GPUs of one machine.
        only: the only stage to plan; None for all.
        as_json: whether to write JSON.

    Raises:
        OmniForcingError: if ``only`` is not a stage that trains a transformer.
    """
    check_stage(only)
    base = load_config(list(overrides), root, preset)
    frozen = [_FROZEN] if base.trainer.precision == "bf16-mixed" else []
    configs: dict[str, Config] = {}
    for way, more in WAYS.items():
        changes = [*overrides, *(frozen if more else []), *more]
        configs[way] = load_config(changes, root, preset)
    clusters = [
        replace(cluster, gpus=gpus, memory=memory) for gpus, memory in product(GPUS, MEMORIES)
    ]
    rows: dict[str, list[Choice]] = {}
    for name in tqdm(
        [only] if only else trained_stages(base), "tracing", unit="stage", leave=False
    ):
        costs = {w: StageCost(name, c, Sizes.from_config(c, root)) for w, c in configs.items()}
        rows[name] = [choose(costs, each) for each in clusters]
    if as_json:
        answer = {
            name: [{**asdict(choice), "total": choice.plan.total} for choice in choices]
            for name, choices in rows.items()
        }
        return json.dumps({"preset": base.preset, "stages": answer}, indent=2)
    lines = [
        f"preset {base.preset}, one clip per GPU at a time: the first way of training that fits, "
        "GB per GPU at the fullest moment, estimated seconds per update",
        *(f"  {way}: {meaning}" for way, meaning in LEGEND.items()),
        "",
        f"{'GPUs':>4}  {'of':<8}" + "".join(f"{name:<30}" for name in rows),
    ]
    for number, each in enumerate(clusters):
        cells = "".join(f"{choices[number]!s:<30}" for choices in rows.values())
        lines.append(f"{each.gpus:>4}  {each.memory / 1e9:>3g} GB  {cells}".rstrip())
    return "\n".join([*lines, "", *map(smallest, rows.values())])
