"""The same global batch on one process and on several gives the same training, for every trained
transformer stage.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.local_cluster import LocalCluster
from omniforcing.core import distributed
from omniforcing.core.latents import Batch
from omniforcing.distill.causal_ode import CausalOde
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.launch import launch
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.stages.shared.training import sharding as configured
from omniforcing.training.config import TrainerConfig
from omniforcing.training.curves import CURVES
from omniforcing.training.loop import fit
from omniforcing.training.sharding import Sharding, gathered
from omniforcing.training.stages import StageModule, TrainingOptions
from tests.support.group import read_rows, run_group
from tests.support.ray_cluster import ROOT
from tests.support.tiny_models import features, latents
from tests.support.tiny_stages import (
    ADAPTED,
    COUNTS,
    STAGES,
    stage_causal_ode,
    stage_self_forcing,
)

BATCH, STEPS = 4, 4
HALF = STEPS // 2
BF16 = "bf16-mixed"
Stage = Callable[..., StageModule]
CAUSAL: list[Stage] = [stage_causal_ode, stage_self_forcing]
pytestmark = pytest.mark.slow


def batches(module: StageModule, every: int) -> Callable[[int], Iterator[Batch]]:
    """Global batches, the same however long an epoch is, of which each process takes its rows."""

    def of_epoch(epoch: int) -> Iterator[Batch]:
        own = distributed.local_rows(BATCH)
        for step in range(epoch * every, (epoch + 1) * every):
            x = latents(COUNTS, BATCH, seed=step)
            if isinstance(module, CausalOde):
                x = x.map(lambda t: torch.stack([t, t * 0.5, t * 0.1], 1))
            yield Batch(x, features(BATCH, seed=step)).rows(own.first, own.last)

    return of_epoch


def train(
    work: Path,
    accumulate: int = 1,
    recompute: bool = False,
    sharding: Sharding | None = None,
    precision: str = "32-true",
    stages: Sequence[Stage] = STAGES,
    steps: int = STEPS,
    every: int = STEPS,
) -> None:
    for build in stages:
        module = build(options=TrainingOptions(accumulate, sharding), recompute=recompute)
        trainer = TrainerConfig(
            checkpoint_every=every, log_every=1, accelerator="cpu", precision=precision
        )
        fit(
            module,
            batches(module, every),
            steps=steps,
            work=work / build.__name__,
            trainer=trainer,
            sharded=bool(sharding),
        )
        state = {name: gathered(value) for name, value in module.ema.model.state_dict().items()}
        if distributed.rank() == 0:
            torch.save(state, work / build.__name__ / "ema.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("alone")
    train(work)
    return work


def compare(
    found: Path,
    alone: Path,
    loss: float = 1e-4,
    weights: float = 1e-3,
    stages: Sequence[Stage] = STAGES,
) -> None:
    for build in stages:
        rows, expected = (read_rows(work / build.__name__ / CURVES) for work in (found, alone))
        assert len(rows) == len(expected) == STEPS
        for row, values in zip(rows, expected, strict=True):
            # Muon rounds to bf16, so gradients differ sooner than the losses that they come from.
            near = {
                n: pytest.approx(v, abs=loss, rel=0 if "loss" in n else 10 * loss)
                for n, v in values.items()
            }
            assert row == near, build.__name__
        ours, theirs = (torch.load(work / build.__name__ / "ema.pt") for work in (found, alone))
        for name, value in theirs.items():
            torch.testing.assert_close(
                ours[name], value, rtol=0, atol=weights, msg=f"{build.__name__}: {name}"
            )


def sharded(*overrides: str) -> Sharding:
    return configured(load_config(["cluster.strategy=fsdp", *overrides], ROOT))


def train_whole_and_in_shards(work: Path) -> None:
    train(work / "ddp", stages=CAUSAL)
    train(work / "fsdp", sharding=sharded(), stages=CAUSAL)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_two_workers_of_a_ray_cluster_learn_what_one_process_does(
    alone: Path, driven_cluster: LocalCluster, tmp_path: Path
) -> None:
    launch(
        partial(train_whole_and_in_shards, tmp_path),
        ClusterConfig(driven_cluster.address, workers=2),
        tmp_path,
    )
    for strategy in ("ddp", "fsdp"):
        compare(tmp_path / strategy, alone, stages=CAUSAL)


def test_micro_batches_of_two_workers_add_up_to_the_batch(alone: Path, tmp_path: Path) -> None:
    run_group(train, 2, tmp_path, 2)
    compare(tmp_path, alone)


def test_processes_of_this_machine_learn_it_and_go_on_to_the_bit(
    alone: Path, tmp_path: Path
) -> None:
    together = partial(train, stages=CAUSAL, every=HALF)
    launch(partial(together, tmp_path / "whole"), ClusterConfig(), tmp_path, processes=2)
    compare(tmp_path / "whole", alone, stages=CAUSAL)
    for steps in (HALF, STEPS):
        run_group(partial(together, steps=steps), 2, tmp_path / "parts")
    for build in CAUSAL:
        whole, parts = (
            torch.load(tmp_path / name / build.__name__ / "ema.pt") for name in ("whole", "parts")
        )
        assert all(torch.equal(parts[name], value) for name, value in whole.items())


def train_in_both_precisions(work: Path) -> None:
    train(work / "fp32", 2, True, sharded())
    train(
        work / "bf16", sharding=sharded(f"trainer.precision={BF16}"), precision=BF16, stages=CAUSAL
    )


def test_two_workers_with_a_shard_each_learn_it_too(alone: Path, tmp_path: Path) -> None:
    """Also in bf16, and then in fp32 weights."""
    run_group(train_in_both_precisions, 2, tmp_path)
    compare(tmp_path / "fp32", alone)
    train(tmp_path / "alone", precision=BF16, stages=CAUSAL)
    compare(tmp_path / "bf16", tmp_path / "alone", loss=0.02, weights=1e-2, stages=CAUSAL)
    for build in CAUSAL:
        assert (tmp_path / "bf16" / build.__name__ / CURVES).read_text() != (
            alone / build.__name__ / CURVES
        ).read_text()


def test_four_workers_with_two_copies_in_two_shards_learn_it_too(
    alone: Path, tmp_path: Path
) -> None:
    run_group(partial(train, sharding=Sharding(group=2), stages=CAUSAL), 4, tmp_path)
    compare(tmp_path, alone, stages=CAUSAL)


def test_one_worker_goes_on_from_the_checkpoint_that_two_left_in_shards(
    alone: Path, tmp_path: Path
) -> None:
    in_shards = partial(train, sharding=Sharding(), stages=CAUSAL, every=HALF)
    run_group(partial(in_shards, steps=HALF), 2, tmp_path)
    run_group(in_shards, 1, tmp_path)
    compare(tmp_path, alone, stages=CAUSAL)


def train_adapters(work: Path) -> None:
    train(work / "ddp", 2, stages=ADAPTED)
    train(work / "fsdp", 1, True, sharded(), stages=ADAPTED)


def test_two_workers_learn_adapters_as_one_process_does(tmp_path: Path) -> None:
    """With whole models and in shards, of a base that all roles share."""
    train(tmp_path / "alone", stages=ADAPTED)
    run_group(train_adapters, 2, tmp_path)
    compare(tmp_path / "ddp", tmp_path / "alone", weights=1e-4, stages=ADAPTED)
    compare(tmp_path / "fsdp", tmp_path / "alone", weights=1e-4, stages=ADAPTED)
