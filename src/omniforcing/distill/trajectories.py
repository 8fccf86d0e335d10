"""ODE pairs: states of a model's probability-flow ODE at the student's sigmas, kept in tensor shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from omniforcing.core.config import SamplerConfig, TrajectoriesConfig
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents
from omniforcing.core.layout import Counts
from omniforcing.core.random import step_generator
from omniforcing.data.tensors import (
    TensorShards,
    commit_shards,
    copy_text,
    from_tokens,
    is_done,
    to_sample,
    write_shard,
)
from omniforcing.data.work import Done, Runner, in_process
from omniforcing.distill.sampling import WholeClip, ode_states
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import load_model


@dataclass(frozen=True)
class Recipe:
    """What decides the trajectories' content.

    Attributes:
        sigmas: the student's steps; a state is kept at each of them and at 0.
        sampler: guidance of the teacher; None for the Stage I student, which has it built in.
        source: digest of the model's folder, recorded in every sample.
    """

    config: TrajectoriesConfig
    sigmas: tuple[float, ...]
    sampler: SamplerConfig | None
    counts: Counts
    source: str
    seed: int


def refine(sigmas: Sequence[float], steps: int) -> list[float]:
    """``[*sigmas, 0]`` in so many Euler steps, each interval split into as many equal ones.

    Raises:
        OmniForcingError: if the steps cannot be shared out evenly.
    """
    substeps, rest = divmod(steps, len(sigmas))
    if rest or not substeps:
        raise OmniForcingError(
            "config.inconsistent",
            f"trajectories.steps is {steps}; it must be a multiple of the number of student.sigmas, {len(sigmas)}",
        )
    fine = [
        high + (low - high) * i / substeps
        for high, low in pairwise([*sigmas, 0.0])
        for i in range(substeps)
    ]
    return [*fine, 0.0]


def trajectory(
    model: DualStream, recipe: Recipe, data: TensorShards, captions: list[str], number: int
) -> Latents:
    """States at the student's sigmas and at 0 for a batch of captions: ``[B, K, T, ...]``, on the CPU."""
    sigmas, device = refine(recipe.sigmas, recipe.config.steps), model.sinks.device
    text = data.text.of(captions).to(device)
    generator = step_generator(recipe.seed, number, "trajectories", device)
    clip = WholeClip(model, recipe.counts, data.grid)
    denoise = clip.denoiser(
        text, data.text.unconditional, recipe.sampler.guidance if recipe.sampler else None
    )
    states = ode_states(denoise, clip.noise(len(captions), generator), sigmas)
    kept = [
        state.to("cpu")
        for sigma, state in zip(sigmas, states, strict=True)
        if sigma in (*recipe.sigmas, 0.0)
    ]
    return kept[0].map(lambda *parts: torch.stack(parts, 1), *kept[1:])


@dataclass(frozen=True)
class Task:
    """One shard of trajectories, of these captions, the first of which has the number ``first``."""

    name: str
    first: int
    captions: list[str]


class Integrator:
    """Holds a model and writes shards of trajectories into ``work``."""

    def __init__(
        self, recipe: Recipe, source: Path, device: str, data: TensorShards, work: Path
    ) -> None:
        self.recipe, self.data, self.work = recipe, data, work
        self.model = load_model(source, sinks=0, device=device).eval()

    def __call__(self, task: Task, done: Done) -> None:
        if not is_done(self.work, task.name):
            write_shard(self.work, task.name, self._samples(task, done))

    def _samples(self, task: Task, done: Done) -> Iterator[dict[str, Any]]:
        recipe, size = self.recipe, self.recipe.config.batch
        for offset in range(0, len(task.captions), size):
            part, start = task.captions[offset : offset + size], task.first + offset
            states = trajectory(self.model, recipe, self.data, part, start)
            for i, caption in enumerate(part):
                origin = {"seed": recipe.seed, "number": start, "row": i, "model": recipe.source}
                info = {**origin, "sigmas": [*recipe.sigmas, 0.0]}
                tensors = from_tokens(states.map(lambda s, i=i: s[i]), self.data.grid)
                yield to_sample(f"{start + i:06d}", tensors, caption, info)
            done(len(part))


def write_trajectories(
    recipe: Recipe,
    source: Path,
    device: str,
    data: TensorShards,
    work: Path,
    folder: Path,
    run: Runner = in_process,
) -> dict[str, Any]:
    """Write ``config.count`` trajectories of training captions; finished shards in ``work`` are not made again.

    Args:
        source: the model's weights.
        device: where each worker's model computes.
        run: where: here, or on a cluster that sees all folders under the same paths.
    """
    config = recipe.config
    available = [caption for _, _, caption, _ in data.samples()]
    captions = [available[i % len(available)] for i in range(config.count)]
    firsts = range(0, config.count, config.per_shard)
    tasks = [
        Task(f"train-{n:06d}", first, captions[first : first + config.per_shard])
        for n, first in enumerate(firsts)
    ]
    missing = [task for task in tasks if not is_done(work, task.name)]
    done = config.count - sum(len(task.captions) for task in missing)
    with tqdm(total=config.count, initial=done, desc="trajectories", unit="sample") as progress:
        run(partial(Integrator, recipe, source, device, data, work), missing, progress.update)
    commit_shards(work, folder, "trajectories", data.grid, [task.name for task in tasks])
    copy_text(data.folder, folder)
    return {"trajectories": config.count, "states": len(recipe.sigmas) + 1}
