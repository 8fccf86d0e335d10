"""The planner's memory of a worker among several, against every byte that two workers take."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from omniforcing.core.distributed import rank
from omniforcing.core.latents import Batch
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.planner.cost import Setting, StageCost
from omniforcing.pipeline.planner.measured import allocated_bytes, held_bytes
from omniforcing.pipeline.planner.networks import BUILDERS, Sizes
from omniforcing.pipeline.stages.shared.training import training_options
from omniforcing.training.loop import fit
from tests.support.group import run_group

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
SMALL = [
    "teacher.model={layers: 2, heads: 2, video_head_dim: 48, audio_head_dim: 32}",
    *("clips.height=64", "clips.seconds=2", "self_forcing.critic_steps=1"),
    *("trainer.accelerator=cpu", "trainer.checkpoint_every=2", "cluster.address=auto"),
]
ADAPTED = "self_forcing={adapter: {rank: 8}, critic_adapter: {rank: 8}, critic_muon_lr: null}"
BELOW = "bidirectional_dmd={adapter: {rank: 8}}", "causal_ode={adapter: {rank: 8}, muon_lr: null}"
ADAPTERS = [ADAPTED, *BELOW]


def configured(more: list[str]) -> Config:
    return load_config([*SMALL, *more], ROOT, "smoke")


def measure(more: list[str], folder: Path) -> None:
    """Write the most bytes of this worker in two updates of one clip."""
    config, name = configured(more), "self_forcing"
    sizes = dataclasses.replace(
        Sizes.from_config(config, ROOT), device="cpu", checkpoint_activations=True
    )
    module = BUILDERS[name](config, sizes, torch.float32, training_options(config))
    held, batch = held_bytes(module), sizes.batch(config, 1)

    def batches(_epoch: int) -> Iterator[Batch]:
        yield from (batch, batch)

    def updates() -> None:
        fit(module, batches, steps=2, work=folder, trainer=config.trainer)

    taken = allocated_bytes(updates, torch.device("cpu"))
    (folder / f"{rank()}.json").write_text(json.dumps(held + taken))


# Not with FSDP2: how many layers are gathered at the peak depends on how the workers keep step.
@pytest.mark.parametrize("more", [[], ADAPTERS], ids=["whole", "adapters"])
def test_planned_memory_of_a_worker_is_that_of_two(more: list[str], tmp_path: Path) -> None:
    run_group(measure, 2, more, tmp_path)
    found = [json.loads((tmp_path / f"{worker}.json").read_text()) for worker in range(2)]
    config = configured(more)
    cost = StageCost("self_forcing", config, Sizes.from_config(config, ROOT))
    planned = cost.bytes(Setting("none", True), 1, replicated=True, foreach=False)
    assert sum(planned.values()) == pytest.approx(max(found), rel=0.1)
