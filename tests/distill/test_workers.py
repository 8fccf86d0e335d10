"""The same global batch on one process and on two gives the same training, for every trained transformer stage."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from omniforcing import world
from omniforcing.config import TrainerConfig
from omniforcing.distill.causal_ode import CausalOde
from omniforcing.distill.common import StageModule
from omniforcing.latents import Batch
from omniforcing.model.sharding import Sharding, gathered
from omniforcing.ops.training import CURVES, fit
from tests.distill.group import read_rows, run_group
from tests.distill.test_distill import COUNTS, STAGES
from tests.model.conftest import features, latents

BATCH, STEPS = 4, 4
pytestmark = pytest.mark.slow


def batches(module: StageModule) -> Callable[[int], Iterator[Batch]]:
    """Global batches of which each process takes its rows."""

    def of_epoch(epoch: int) -> Iterator[Batch]:
        own = world.own_rows(BATCH)
        for i in range(2):
            x = latents(COUNTS, BATCH, seed=epoch * 2 + i)
            if isinstance(module, CausalOde):
                x = x.map(lambda t: torch.stack([t, t * 0.5, t * 0.1], 1))
            yield Batch(x, features(BATCH, seed=epoch * 2 + i)).rows(own.first, own.last)

    return of_epoch


def train(work: Path, accumulate: int = 1, recompute: bool = False, sharding: Sharding | None = None) -> None:
    for build in STAGES:
        module = build()
        module.accumulate, module.sharding = accumulate, sharding
        if recompute:
            module.recompute()
        trainer = TrainerConfig(checkpoint_every=2, log_every=1, accelerator="cpu")
        fit(module, batches(module), steps=STEPS, work=work / build.__name__, trainer=trainer, sharded=bool(sharding))
        state = {name: gathered(value) for name, value in module.ema.model.state_dict().items()}
        if world.rank() == 0:
            torch.save(state, work / build.__name__ / "ema.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("alone")
    train(work)
    return work


def compare(found: Path, alone: Path) -> None:
    for build in STAGES:
        rows, expected = (read_rows(work / build.__name__ / CURVES) for work in (found, alone))
        assert len(rows) == len(expected) == STEPS
        for row, values in zip(rows, expected, strict=True):
            assert row == pytest.approx(values, abs=1e-4), build.__name__
        ours, theirs = (torch.load(work / build.__name__ / "ema.pt") for work in (found, alone))
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-3, msg=f"{build.__name__}: {name}")


def test_two_workers_learn_what_one_process_does(alone: Path, tmp_path: Path) -> None:
    run_group(train, 2, tmp_path)
    compare(tmp_path, alone)


def test_micro_batches_add_up_to_the_batch(alone: Path, tmp_path: Path) -> None:
    run_group(train, 2, tmp_path, 2)
    compare(tmp_path, alone)


def test_two_workers_with_a_shard_each_learn_it_too(alone: Path, tmp_path: Path) -> None:
    run_group(train, 2, tmp_path, 2, True, Sharding())
    compare(tmp_path, alone)


def test_four_workers_with_two_copies_in_two_shards_learn_it_too(alone: Path, tmp_path: Path) -> None:
    run_group(train, 4, tmp_path, 1, False, Sharding(group=2))
    compare(tmp_path, alone)
