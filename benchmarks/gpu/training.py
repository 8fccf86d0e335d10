"""One update of Stages I, II and III at LTX-2's width, with as many layers as the card holds.

Every update is the stage's own training step under bf16 autocast, with fp32 master weights, AdamW and
EMA, layers recomputed, one clip of 5 s at 512x768. Latents and text are random. The peak memory stands
beside what the planner says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import floor

import torch
from torch import Tensor

from benchmarks.gpu.rows import Figures, Measurement
from benchmarks.gpu.setup import Setup, preset
from omniforcing.core.config import project_root
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Batch
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.planner.cost import USABLE, Setting, StageCost
from omniforcing.pipeline.planner.networks import BUILDERS, Sizes
from omniforcing.training.stages import StageModule

STAGES = ("causal_ode", "self_forcing", "bidirectional_dmd")
SETTING = Setting("none", recompute=True)
WARM_UP, MEASURED = 1, 2  # updates


def measurements(setup: Setup) -> list[Measurement]:
    """A row per stage; Stage II first, which is traced soonest."""
    does = "run one update with as many layers as fit and compare its peak memory with the plan's"
    return [Measurement(name, partial(one_update, setup, name), does) for name in STAGES]


def one_update(setup: Setup, name: str) -> Figures:
    """Seconds of an update and its peak memory beside the planned one."""
    config = preset("smoke" if setup.small else "ltx2")
    sizes = Sizes.from_config(config, project_root())
    layers = sizes.core["num_layers"]
    planned = plan_by_layers(name, config, sizes)
    fitting = layers
    if setup.cuda:
        room = USABLE * torch.cuda.mem_get_info()[1]
        per_layer = planned(2) - planned(1)
        fitting = min(layers, 1 + floor((room - planned(1)) / per_layer))
        if fitting < 1:
            raise OmniForcingError(
                "device.too-small",
                f"one layer is planned at {planned(1) / 1e9:.0f} GB, {room / 1e9:.0f} are usable",
            )
    here = replace(
        sizes.with_layers(fitting), device=setup.device, checkpoint_activations=SETTING.recompute
    )
    module = BUILDERS[name](config, here, torch.float32)
    updates = Updates(setup, config, module, random_batch(config, here, name))
    updates.run(WARM_UP)
    seconds = updates.run(MEASURED) / MEASURED
    found: Figures = {
        "layers": f"{fitting} of {layers}",
        "s_per_update": seconds,
        "planned_gb": planned(fitting) / 1e9,
    }
    if setup.cuda:
        peak = torch.cuda.max_memory_allocated()
        found |= {"peak_gb": peak / 1e9, "peak_of_planned": peak / planned(fitting)}
    found["s_at_all_layers"] = seconds * layers / fitting
    return {**found, "planned_gb_at_all_layers": planned(layers) / 1e9}


def plan_by_layers(name: str, config: Config, sizes: Sizes) -> Callable[[int], float]:
    """The planner's bytes for one GPU as a function of the layers, of which they are linear."""
    one, two = (
        sum(StageCost(name, config, sizes.with_layers(n), depths=None).bytes(SETTING, 1).values())
        for n in (1, 2)
    )
    return lambda layers: one + (two - one) * (layers - 1)


def random_batch(config: Config, sizes: Sizes, name: str, size: int = 1) -> Batch:
    """A batch of random latents, or trajectories, and text features on the device."""
    batch = sizes.batch(config, size, len(config.student.sigmas) + 1 if name == "causal_ode" else 0)
    for tensor in (*batch.latents, *batch.text):
        tensor.normal_()
    return batch


class Updates:
    """A stage's training step over and over, without a trainer: bf16 autocast where the preset has it."""

    def __init__(self, setup: Setup, config: Config, module: StageModule, batch: Batch) -> None:
        self.setup, self.module, self.batch = setup, module, batch
        module.place(setup.torch_device)
        self.optimisers = module.configure_optimizers()
        self.mixed = config.trainer.precision == "bf16-mixed"
        self.step = 0
        if setup.cuda:
            torch.cuda.reset_peak_memory_stats()

    def run(self, count: int) -> float:
        """Seconds of so many updates.

        Raises:
            OmniForcingError: if a logged value is not finite.
        """
        began = self._now()
        for _ in range(count):
            with torch.autocast(self.setup.device, torch.bfloat16, enabled=self.mixed):
                logged = self.module.training_step(
                    self.step, self.batch, self.optimisers, Tensor.backward
                )
            self.step += 1
        seconds = self._now() - began
        broken = [name for name, value in logged.items() if not torch.isfinite(value)]
        if broken:
            raise OmniForcingError(
                "training.not-finite",
                f"after {self.step} updates {', '.join(broken)} is not finite",
            )
        return seconds

    def _now(self) -> float:
        if self.setup.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
