"""One update of Stages I, II and III at LTX-2's width, with as many layers as the card holds.

Every update is the stage's own training step under bf16 autocast, with fp32 master weights, AdamW
and EMA, activations recomputed, one clip of 5 s at 512x768. Latents and text are random.

Figures: `layers` measured; `s_per_update`; `planned_gb` by the planner and `peak_gb` by the
allocator; both scaled to all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.fitting import layers_that_fit
from benchmarks.gpu.rows import Figures, Measurement
from benchmarks.gpu.settings import PartSettings
from benchmarks.presets import load_preset
from benchmarks.timing import Clock
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


def measurements(settings: PartSettings) -> list[Measurement]:
    """List a row per stage; Stage II first, whose memory is planned soonest."""
    does = "run one update with as many layers as fit and compare its peak memory with the plan's"
    return [Measurement(name, partial(one_update, settings, name), does) for name in STAGES]


def one_update(settings: PartSettings, name: str) -> Figures:
    """Measure seconds of an update, and its peak memory beside the planned one."""
    config = load_preset("smoke" if settings.small else "ltx2")
    sizes = Sizes.from_config(config, project_root())
    all_layers = sizes.core["num_layers"]
    planned_bytes = plan_by_layers(name, config, sizes)
    layers = all_layers
    if settings.cuda:
        usable = USABLE * torch.cuda.mem_get_info()[1]
        layers = layers_that_fit(planned_bytes, all_layers, usable)
    measured = replace(
        sizes.with_layers(layers),
        device=settings.device,
        checkpoint_activations=SETTING.recompute,
    )
    module = BUILDERS[name](config, measured, torch.float32)
    updates = Updates(settings, config, module, random_batch(config, measured, name))
    updates.run(WARM_UP)
    seconds = updates.run(MEASURED) / MEASURED
    figures: Figures = {
        "layers": f"{layers} of {all_layers}",
        "s_per_update": seconds,
        "planned_gb": planned_bytes(layers) / 1e9,
    }
    if settings.cuda:
        peak = torch.cuda.max_memory_allocated()
        figures["peak_gb"] = peak / 1e9
        figures["peak_of_planned"] = peak / planned_bytes(layers)
    figures["s_at_all_layers"] = seconds * all_layers / layers
    figures["planned_gb_at_all_layers"] = planned_bytes(all_layers) / 1e9
    return figures


def plan_by_layers(name: str, config: Config, sizes: Sizes) -> Callable[[int], float]:
    """Return the planner's bytes for one GPU as a function of the layers.

    The bytes are linear in the layers, so plans for one and for two give all others.
    """

    def plan(layers: int) -> float:
        cost = StageCost(name, config, sizes.with_layers(layers), depths=None)
        return sum(cost.bytes(SETTING, 1).values())

    one, two = plan(1), plan(2)
    return lambda layers: one + (two - one) * (layers - 1)


def random_batch(config: Config, sizes: Sizes, name: str, size: int = 1) -> Batch:
    """Draw a batch for a stage on the device: latents, or Stage II's trajectories, and text."""
    states = len(config.student.sigmas) + 1 if name == "causal_ode" else 0
    batch = sizes.batch(config, size, states)
    for tensor in (*batch.latents, *batch.text):
        tensor.normal_()
    return batch


class Updates:
    """Repeats a stage's training step without a trainer, under bf16 autocast if the preset has it.

    Args:
        settings: of the part.
        config: of the preset.
        module: the stage.
        batch: of every update.
    """

    def __init__(
        self, settings: PartSettings, config: Config, module: StageModule, batch: Batch
    ) -> None:
        self.device, self.module, self.batch = settings.torch_device, module, batch
        module.place(self.device)
        self.optimisers = module.configure_optimizers()
        self.mixed = config.trainer.precision == "bf16-mixed"
        self.step = 0
        if settings.cuda:
            torch.cuda.reset_peak_memory_stats()

    def run(self, count: int) -> float:
        """Run ``count`` updates and return their seconds.

        Raises:
            OmniForcingError: if a logged value is not finite.
        """
        clock = Clock(self.device)
        for _ in range(count):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                logged = self.module.training_step(
                    self.step, self.batch, self.optimisers, Tensor.backward
                )
            self.step += 1
        seconds = clock.elapsed()
        broken = [name for name, value in logged.items() if not torch.isfinite(value)]
        if broken:
            raise OmniForcingError(
                "training.not-finite",
                f"after {self.step} updates {', '.join(broken)} is not finite",
            )
        return seconds
