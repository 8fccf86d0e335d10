"""The table of machines: what is chosen on each, and what the smallest and the next smaller say."""

import json
from pathlib import Path

import pytest

from omniforcing.cli import main
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.planner.cost import USABLE, Cluster, Setting, StageCost
from omniforcing.pipeline.planner.machines import GPUS, MEMORIES, WAYS, choose, smallest
from omniforcing.pipeline.planner.networks import Sizes

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
SMALL = ("teacher.model={layers: 2, heads: 2, video_head_dim: 48, audio_head_dim: 32}",)


@pytest.fixture(scope="module")
def costs() -> dict[str, StageCost]:
    found = {}
    for way, more in WAYS.items():
        config = load_config([*SMALL, *more], ROOT, "smoke")
        found[way] = StageCost("causal_ode", config, Sizes.from_config(config, ROOT))
    return found


def test_the_first_way_that_fits_is_chosen_and_else_what_is_lacking_is_said(
    costs: dict[str, StageCost],
) -> None:
    needs = {
        way: min(
            sum(cost.bytes(Setting("none", recompute), 1).values()) for recompute in (False, True)
        )
        for way, cost in costs.items()
    }
    assert needs["all"] > needs["lean"] > needs["adapters"] > needs["int8"]
    for way, need in needs.items():
        choice = choose(costs, Cluster(1, 1.001 * need / USABLE))
        assert (choice.way, choice.plan.fits) == (way, True)
    small = Cluster(1, 0.5 * needs["int8"] / USABLE)
    none = choose(costs, small)
    assert none.way == "int8" and not none.plan.fits
    assert none.lacking == pytest.approx(0.5 * needs["int8"])
    large = choose(costs, Cluster(1, 1.001 * needs["adapters"] / USABLE))
    said = smallest([large, none])
    assert said.startswith("causal_ode: from 1 x ") and "(adapters); the next smaller" in said
    assert "fits none" in smallest([none])


def test_a_batch_that_is_larger_than_the_gpus_takes_more_passes(
    costs: dict[str, StageCost],
) -> None:
    batch = costs["all"].config.causal_ode.optim.batch
    one, two = (choose(costs, Cluster(gpus, 80e9)).plan.setting for gpus in (1, 2))
    assert (one.batch, one.accumulation) == (1, batch)
    assert (two.batch, two.accumulation) == (1, batch // 2)


def test_the_command_has_a_row_for_every_machine(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--preset", "smoke", *SMALL, "--machines", "--stage", "causal_ode", "--json"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    rows = json.loads(capsys.readouterr().out)["stages"]["causal_ode"]
    machines = [(row["cluster"]["gpus"], row["cluster"]["memory"]) for row in rows]
    assert machines == [(gpus, memory) for gpus in GPUS for memory in MEMORIES]
    assert {row["way"] for row in rows} == {"all"}


@pytest.mark.parametrize("option", ["--gpus=4", "--memory=80GB", "--batch=4"])
def test_a_table_of_machines_takes_no_single_cluster(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--preset", "smoke", "--machines", option])
    assert end.value.code == 2
    assert f"leave out {option.split('=')[0]}" in capsys.readouterr().err
