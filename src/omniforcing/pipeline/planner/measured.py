"""Memory and time of a stage's real updates, taken on noise and random weights.

What a plan says is held to these in tests; the ablation shows them beside what was learnt.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from omniforcing.pipeline.config import Config
from omniforcing.pipeline.planner.networks import BUILDERS, Sizes, trained_stages
from omniforcing.training.sharding import own_part
from omniforcing.training.stages import StageModule, TrainingOptions

WARM_UP, TIMED = 2, 3  # updates; the second is the first one beside optimiser states


def allocated_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that torch hands out during a call, on top of what is held before it.

    Of a GPU by its allocator's statistics, of a CPU by the profile of every allocation.
    """
    gc.collect()  # what was left before would be given back while we look
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - held
    # Else the profiler's library says on stderr that it begins and that it ends.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory = [e for e in events if e.name() == "[memory]" and e.device_index() < 0]
    assert memory
    held, most = 0, 0
    for event in sorted(memory, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def held_bytes(module: StageModule) -> int:
    """Return this process's bytes of a stage's weights and buffers, frozen models included."""
    storages = [own_part(tensor).untyped_storage() for tensor in _tensors_of(module)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors_of(module: StageModule) -> Iterator[Tensor]:
    bases = [model.base for model in module.models() if model.base is not None]
    for part in (module, *getattr(module, "frozen", ()), *bases):
        yield from part.parameters()
        yield from part.buffers()


def training_cost(
    config: Config, sizes: Sizes, options: TrainingOptions
) -> dict[str, dict[str, float]]:
    """Measure updates of Stages I to III on this machine, one process, sizes as configured.

    Args:
        config: the configuration.
        sizes: sizes of networks and data, on the device to measure.
        options: what saves memory.

    Returns:
        By stage ``minutes`` of all its updates (of a CPU's time, which other processes leave
        alone; of a GPU by the clock), ``peak_mb``, the most megabytes of tensors at once, and
        ``recomputed_mb``, the same with layers recomputed in the backward pass.
    """
    found = {}
    for name in trained_stages(config):
        steps = getattr(config, name).optim.steps
        if name == "teacher" or not steps:
            continue
        recompute = config.trainer.checkpoint_activations
        stage = _Updates(name, config, replace(sizes, checkpoint_activations=recompute), options)
        peak = stage.warm_up()
        seconds = [_seconds(stage.update, stage.module.device) for _ in range(TIMED)]
        del stage
        recomputed = _Updates(name, config, replace(sizes, checkpoint_activations=True), options)
        found[name] = {
            "minutes": statistics.median(seconds) * steps / 60,
            "peak_mb": peak / 1e6,
            "recomputed_mb": recomputed.warm_up() / 1e6,
        }
    return found


class _Updates:
    """A stage on random weights that is updated on noise."""

    def __init__(self, name: str, config: Config, sizes: Sizes, options: TrainingOptions) -> None:
        self.module: StageModule = BUILDERS[name](config, sizes, torch.float32, options)
        states = len(config.student.sigmas) + 1 if name == "causal_ode" else 0
        self.batch = sizes.batch(config, getattr(config, name).optim.batch, states)
        self.module.place(self.batch.latents.video.device)
        self.mixed, self.step = config.trainer.precision == "bf16-mixed", 0
        self.optimisers = self.module.configure_optimizers()

    def update(self) -> None:
        """Take a training step."""
        with torch.autocast(self.module.device.type, torch.bfloat16, enabled=self.mixed):
            self.module.training_step(self.step, self.batch, self.optimisers, Tensor.backward)
        self.step += 1

    def warm_up(self) -> int:
        """Take the first steps; returns the most bytes at once, weights included."""

        def updates() -> None:
            for _ in range(WARM_UP):
                self.update()

        return held_bytes(self.module) + allocated_bytes(updates, self.module.device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began
