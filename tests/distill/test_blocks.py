"""Stage III, whose blocks run backward one after the other, against one graph of the rollout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.networks import GENERATIONS
from benchmarks.stage_three import WholeRollout, largest_difference, student_gradients
from omniforcing.core import distributed
from omniforcing.core.latents import Batch, HeldText
from omniforcing.core.layout import LAYOUTS
from omniforcing.distill.config import SelfForcingConfig
from omniforcing.distill.sampling import full_view
from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.model.rollout import RolloutConfig
from omniforcing.training.sharding import Sharding, gathered
from omniforcing.training.stages import TrainingOptions
from tests.support.group import run_group
from tests.support.tiny_models import GRID, features, latents, tiny_model
from tests.support.tiny_stages import OPTIM, SIGMAS

pytestmark = pytest.mark.extended

BLOCKS, NEAR = 4, 1e-6


def stage(
    kind: type[SelfForcing],
    layout: str = "prefix",
    sinks: int = 3,
    steered: float = 0.5,
    window: int = 1,
    horizon: int = 2,
    accumulate: int = 1,
    recompute: bool = True,
    sharding: Sharding | None = None,
    **model: Any,
) -> SelfForcing:
    """Past the horizon of 2, blocks see a history that is rotated anew for each of them."""
    table = LAYOUTS[layout]
    student, teacher, critic = (
        tiny_model(count, checkpoint_activations=recompute, **model) for count in (sinks, 0, 0)
    )
    view = full_view(teacher, table.total(BLOCKS), GRID)
    with torch.no_grad():  # a critic like the teacher would give no gradient
        for parameter in critic.parameters():
            parameter.mul_(1.1)
    return kind(
        student,
        teacher,
        critic,
        config=SelfForcingConfig(optim=OPTIM, steered=steered),
        rollout=RolloutConfig(table, GRID, SIGMAS, window=window, horizon=horizon),
        blocks=BLOCKS,
        captions=HeldText(features(5, seed=3, model=student)),
        view=view,
        unconditional=features(1, seed=9, model=student),
        seed=0,
        options=TrainingOptions(accumulate, sharding),
    )


def batch(module: SelfForcing, rows: int = 2) -> Batch:
    counts = module.rollout.table.total(BLOCKS)
    return Batch(latents(counts, rows), features(rows, model=module.model))


def gradients(kind: type[SelfForcing], precision: str = "32-true", **how: Any) -> dict[str, Tensor]:
    module = stage(kind, **how)
    return student_gradients(module, batch(module), precision)


@pytest.mark.parametrize(
    "how",
    [
        {"accumulate": 2},
        {"layout": "merged", "sinks": 0},
        {"layout": "thirds", "steered": 0.0, "horizon": 4, "recompute": False},
        {"steered": 1.0, **GENERATIONS["2.3"]},
        {"recompute": False, **GENERATIONS["2.5-fixed-text"]},
    ],
    ids=["micro-batches", "merged, no sinks", "thirds, kept", "2.3", "2.5 with fixed text"],
)
def test_gradients_are_those_of_one_graph(how: dict[str, Any]) -> None:
    whole, blocks = (gradients(kind, **how) for kind in (WholeRollout, SelfForcing))
    assert any(g.abs().sum() > 0 for n, g in blocks.items() if "attn2.to_k" in n)
    assert largest_difference(blocks, whole) < NEAR


def test_in_bf16_gradients_are_no_further_from_exact_ones() -> None:
    """Gradients of a weight are added up over the blocks in fp32, not in bf16 as in one graph."""
    exact = gradients(WholeRollout)
    off = []
    for kind in (SelfForcing, WholeRollout):
        rounded = gradients(kind, "bf16-mixed")
        assert rounded.keys() == exact.keys()
        off.append(sum(float((rounded[n] - g).norm() / g.norm()) for n, g in exact.items()))
    assert 0 < off[0] < off[1] < 0.1 * len(exact)


def shards_of_gradients(path: Path) -> None:
    """As a worker: gradients by this process's rows, with all models in shards, both ways."""
    found = []
    for kind in (WholeRollout, SelfForcing):
        module = stage(kind, accumulate=2, sharding=Sharding())
        module.shard(torch.device("cpu"))
        rows = distributed.local_rows(4)
        own = student_gradients(module, batch(module, 4).rows(rows.first, rows.last))
        found.append({name: gathered(gradient) for name, gradient in own.items()})
    if distributed.rank() == 0:
        torch.save(found, path)


@pytest.mark.slow
def test_two_workers_with_a_shard_each_have_the_gradients_of_one_graph(tmp_path: Path) -> None:
    run_group(shards_of_gradients, 2, tmp_path / "gradients.pt")
    whole, blocks = torch.load(tmp_path / "gradients.pt")
    assert largest_difference(blocks, whole) < NEAR
    module = stage(WholeRollout)
    alone = student_gradients(module, batch(module, 4))
    assert largest_difference(blocks, alone) < 1e-5
