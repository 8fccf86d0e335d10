"""LTX-2 as preset ltx2 trains it, but with four of its layers, narrow, and of a small picture:
each stage one step on Ray's workers, and on.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.local_cluster import LocalCluster
from omniforcing.core import distributed
from omniforcing.core.latents import Batch, HeldText, TextFeatures
from omniforcing.core.pair import Pair
from omniforcing.distill.bidirectional_dmd import BidirectionalDmd
from omniforcing.distill.causal_ode import CausalOde
from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.model.student import build_core
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.launch import launch
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.planner.networks import Sizes
from omniforcing.pipeline.stages.shared.training import sharding
from omniforcing.training import checkpoints
from omniforcing.training.curves import CURVES
from omniforcing.training.loop import fit
from omniforcing.training.sharding import is_sharded, save_sharded
from omniforcing.training.stages import StageModule, TrainingOptions
from tests.support.group import read_rows, run_group
from tests.support.ray_cluster import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]
# What is small: depth (of 48; what stages keep in step is the same in each layer), width and number
# of heads (of 32), captions, and the picture; and the batch is one clip of each worker.
LAYERS = 4
SMALL = [
    f"teacher.model.layers={LAYERS}",
    "teacher.model.heads=2",
    "teacher.model.video_head_dim=16",
    "teacher.model.audio_head_dim=8",
    "clips.height=64",
    "clips.width=64",
    "clips.seconds=4",  # five blocks: one more than the window of three and the prefix
    "student.sinks=4",
    "self_forcing.steered=0.5",
]
STEPS = [
    f"{stage}.{key}"
    for stage in ("bidirectional_dmd", "self_forcing")
    for key in ("critic_steps=1", "optim.batch=2")
]
ON_CPU = ["trainer.accelerator=cpu", "trainer.checkpoint_activations=true", "cluster.strategy=fsdp"]
CAPTIONS = 3
ALL = ("I", "II", "III")


def rehearsed() -> tuple[Config, Sizes]:
    config = load_config([*SMALL, *STEPS, "causal_ode.optim.batch=2", *ON_CPU], ROOT, "ltx2")
    sizes = Sizes.from_config(config, Path("/no/weights"))
    return config, replace(
        sizes, length=8, core={**sizes.core, "caption_channels": 24}, caption=Pair(24, 24)
    )


def text(sizes: Sizes, count: int, seed: int) -> TextFeatures:
    generator = torch.Generator().manual_seed(seed)
    return sizes.caption.map(
        lambda width: torch.randn(count, sizes.length, width, generator=generator)
    )


def batches(config: Config, sizes: Sizes, states: int) -> Callable[[int], Iterator[Batch]]:
    """The same whole batches wherever they are asked for, of which each worker takes its rows."""

    def of_epoch(epoch: int) -> Iterator[Batch]:
        own, like = distributed.local_rows(2), replace(sizes, device="cpu").batch(config, 2, states)
        generator = torch.Generator().manual_seed(epoch)
        x = like.latents.map(lambda t: torch.randn(t.shape, generator=generator))
        yield Batch(x, text(sizes, 2, epoch)).rows(own.first, own.last)

    return of_epoch


def stages(config: Config, sizes: Sizes, teacher: Path) -> dict[str, Callable[[], StageModule]]:
    """Stages I to III as the pipeline builds them on a cluster: no model has memory yet."""

    def networks(count: int) -> list[DualStream]:
        return [
            load_model(teacher, 0, meta=True, checkpoint_activations=True) for _ in range(count)
        ]

    def student() -> DualStream:
        return load_model(
            teacher,
            config.student.sinks,
            stabiliser=config.student.stabiliser,
            fresh=True,
            meta=True,
            checkpoint_activations=True,
        )

    options = TrainingOptions(sharding=sharding(config))
    none, captions = text(sizes, 1, 9), HeldText(text(sizes, CAPTIONS, 8))
    rest = (config.clips.latent_counts, sizes.grid, config.seed, options)
    return {
        "I": lambda: BidirectionalDmd.from_config(
            config.bidirectional_dmd, config.student.sigmas, networks(3), none, *rest
        ),
        "II": lambda: CausalOde.from_config(config.causal_ode, config.student, student(), *rest),
        "III": lambda: SelfForcing.from_config(
            config.self_forcing, config.student, [student(), *networks(2)], none, captions, *rest
        ),
    }


def rehearse(teacher: Path, work: Path, steps: int) -> None:
    """Train every stage for ``steps`` steps in all, going on from what is there, and publish what
    it learnt.
    """
    torch.set_num_threads(1)
    config, sizes = rehearsed()
    trainer = replace(config.trainer, checkpoint_every=1, log_every=1, precision="32-true")
    for name, build in stages(config, sizes, teacher).items():
        module = build()
        module.optim = replace(module.optim, steps=steps)
        assert all(p.is_meta for p in module.model.core.parameters())
        data = batches(config, sizes, states=len(config.student.sigmas) + 1 if name == "II" else 0)
        fit(module, data, steps=steps, work=work / name, trainer=trainer, sharded=True)
        assert is_sharded(module.model)
        sharded: list[Any] = list(module.model.core.parameters())
        largest = max(p.to_local().numel() for p in sharded)
        assert distributed.world_size() == 1 or largest < max(
            p.numel() for p in module.model.core.parameters()
        )
        folder = work / name / f"published-{distributed.rank()}"
        folder.mkdir(exist_ok=True)
        save_sharded(module.ema.model, folder)


def test_every_stage_of_preset_ltx2_takes_a_step_and_goes_on_from_its_checkpoint_on_other_workers(
    driven_cluster: LocalCluster, tmp_path: Path
) -> None:
    config, sizes = rehearsed()
    assert (
        config.teacher.model.layers == LAYERS
        and len(config.student.sigmas) == 4
        and config.student.window == 3
    )
    teacher, work = tmp_path / "teacher", tmp_path / "work"
    core = build_core(sizes.core, seed=1)
    save_model(DualStream(core), teacher)
    cluster = ClusterConfig(driven_cluster.address, workers=2)
    launch(partial(rehearse, teacher, work, 1), cluster, tmp_path)
    for name in ALL:
        first = checkpoints.latest(work / name, sharded=True)
        assert first is not None and first.name == "epoch-000001.shards"
        published = load_model(work / name / "published-0")
        assert len(published.core.transformer_blocks) == LAYERS
        learnt = [
            bool((a != b).any())
            for a, b in zip(published.core.parameters(), core.parameters(), strict=True)
        ]
        assert sum(learnt) > 0.9 * len(learnt)
    # Two workers wrote it; one goes on. That it learns what they would have, test_workers holds at
    # two layers.
    run_group(rehearse, 1, teacher, work, 2)
    for name in ALL:
        last = checkpoints.latest(work / name, sharded=True)
        assert last is not None and last.name == "epoch-000002.shards"
        assert [row["step"] for row in read_rows(work / name / CURVES)] == [0, 1]
