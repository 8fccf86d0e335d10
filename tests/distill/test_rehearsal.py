"""All 48 layers of LTX-2's config at a small width: each stage one step on two sharded workers, a checkpoint, and on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from omniforcing import world
from omniforcing.config import CausalOdeConfig, OptimiserConfig, SelfForcingConfig, Stabiliser, TrainerConfig
from omniforcing.distill.bidirectional_dmd import BidirectionalDmd
from omniforcing.distill.causal_ode import CausalOde
from omniforcing.distill.common import StageModule
from omniforcing.distill.sampling import full_view
from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.model.attention import Masked
from omniforcing.model.sharding import Sharding, is_sharded, save_sharded
from omniforcing.model.student import build_core, load_model, positions_for, save_model
from omniforcing.model.transformer import DualStream
from omniforcing.ops import checkpoints
from omniforcing.ops.training import CURVES, fit
from tests.distill.group import read_rows, run_group
from tests.distill.test_distill import COUNTS, ROLLOUT, SIGMAS, TABLE
from tests.distill.test_workers import batches
from tests.model.conftest import GRID, features, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LAYERS = 48
OPTIM = OptimiserConfig(steps=2, batch=4, warmup=1)


def open_model(folder: Path, sinks: int = 0) -> DualStream:
    return load_model(folder, sinks, stabiliser=Stabiliser.sinks, fresh=True, meta=True)


def stages(teacher: Path) -> dict[str, Callable[[], StageModule]]:
    """Stages I to III as the pipeline builds them on a cluster: no model has memory yet."""
    dmd = SelfForcingConfig(optim=OPTIM, critic_steps=1, steered=0.5)

    def scores() -> tuple[DualStream, DualStream]:
        return open_model(teacher), open_model(teacher)

    def first() -> StageModule:
        real, fake = scores()
        none, view = features(1, seed=9), full_view(real, COUNTS, GRID)
        rest = {"view": view, "unconditional": none, "sigmas": SIGMAS, "counts": COUNTS, "grid": GRID}
        return BidirectionalDmd(open_model(teacher), real, fake, config=dmd, seed=0, **rest)

    def second() -> StageModule:
        student = open_model(teacher, 3)
        view = Masked(positions_for(student, COUNTS, GRID, sinks=True), TABLE, 3, None, 2)
        return CausalOde(student, CausalOdeConfig(optim=OPTIM), SIGMAS, TABLE, view, seed=0)

    def third() -> StageModule:
        real, fake = scores()
        none, view = features(1, seed=9), full_view(real, COUNTS, GRID)
        rest = {"view": view, "unconditional": none, "rollout": ROLLOUT, "captions": features(5, seed=3)}
        return SelfForcing(open_model(teacher, 3), real, fake, config=dmd, blocks=3, seed=0, **rest)

    return {"I": first, "II": second, "III": third}


def rehearse(teacher: Path, work: Path, steps: int) -> None:
    """Train every stage for ``steps`` steps in all, going on from what is there, and publish what it learnt."""
    for name, build in stages(teacher).items():
        module = build()
        module.optim = replace(module.optim, steps=steps)
        module.sharding = Sharding()
        module.recompute()
        assert all(p.is_meta for p in module.model.core.parameters())
        trainer = TrainerConfig(checkpoint_every=1, log_every=1, accelerator="cpu")
        fit(module, batches(module), steps=steps, work=work / name, trainer=trainer, sharded=True)
        assert is_sharded(module.model)
        largest = max(p.to_local().numel() for p in module.model.core.parameters())
        assert world.size() == 1 or largest < max(p.numel() for p in module.model.core.parameters())
        folder = work / name / f"published-{world.rank()}"
        folder.mkdir(exist_ok=True)
        save_sharded(module.ema.model, folder)


def test_every_stage_of_48_layers_takes_a_step_and_goes_on_from_its_checkpoint_on_other_workers(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    core = build_core(tiny_config(num_layers=LAYERS, attention_head_dim=16, cross_attention_dim=32), seed=1)
    save_model(DualStream(core), teacher)
    run_group(rehearse, 2, teacher, tmp_path / "work", 1)
    for name in ("I", "II", "III"):
        work = tmp_path / "work" / name
        first = checkpoints.latest(work, sharded=True)
        assert first is not None and first.name == "epoch-000001.shards"
        published = load_model(work / "published-0")
        assert len(published.core.transformer_blocks) == LAYERS
        learnt = [bool((a != b).any()) for a, b in zip(published.core.parameters(), core.parameters(), strict=True)]
        assert sum(learnt) > 0.9 * len(learnt)
    # Two workers wrote it; one goes on.
    run_group(rehearse, 1, teacher, tmp_path / "work", 2)
    for name in ("I", "II", "III"):
        last = checkpoints.latest(tmp_path / "work" / name, sharded=True)
        assert last is not None and last.name == "epoch-000002.shards"
        assert [row["step"] for row in read_rows(tmp_path / "work" / name / CURVES)] == [0, 1]
