"""ODE pairs: states of a model's probability-flow ODE at the student's sigmas, in tensor shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

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
from omniforcing.distill.config import SamplerConfig, TrajectoriesConfig
from omniforcing.distill.sampling import WholeClip, ode_states
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import load_model


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content of trajectories.

    Attributes:
        config: number of trajectories, Euler steps and sizes of batch and shard.
        sigmas: the student's steps; a state is kept at each of them and at 0.
        sampler: guidance of the teacher; None for the Stage I student, which has it built in.
        counts: latents of a clip.
        source: digest of the model's folder, recorded in every sample.
        seed: the run's seed.
    """

    config: TrajectoriesConfig
    sigmas: tuple[float, ...]
    sampler: SamplerConfig | None
    counts: Counts
    source: str
    seed: int


def refine(sigmas: Sequence[float], steps: int) -> list[float]:
    """Split each interval of ``[*sigmas, 0]`` into equally many equal Euler steps.

    Args:
        sigmas: the student's sigmas, from high to low.
        steps: number of all Euler steps.

    Raises:
        OmniForcingError: if the steps are no multiple of the intervals.
    """
    substeps, rest = divmod(steps, len(sigmas))
    if rest or not substeps:
        raise OmniForcingError(
            "config.inconsistent",
            f"trajectories.steps is {steps}; "
            f"it must be a multiple of the number of student.sigmas, {len(sigmas)}",
        )
    fine = []
    for high, low in pairwise([*sigmas, 0.0]):
        for i in range(substeps):
            fine.append(high + (low - high) * i / substeps)
    return [*fine, 0.0]


def trajectory(
    model: DualStream, recipe: Recipe, data: TensorShards, captions: list[str], number: int
) -> Latents:
    """Integrate a batch of captions.

    Args:
        model: gives velocities.
        recipe: sigmas, guidance, sizes and seed.
        data: text features and grid.
        captions: B captions.
        number: number of the batch's first trajectory, which decides its noise.

    Returns:
        States at the student's K - 1 sigmas and at 0, ``[B, K, T, ...]``, on the CPU.
    """
    sigmas, device = refine(recipe.sigmas, recipe.config.steps), model.sinks.device
    text = data.text.of(captions).to(device)
    generator = step_generator(recipe.seed, number, "trajectories", device)
    clip = WholeClip(model, recipe.counts, data.grid)
    guidance = recipe.sampler.guidance if recipe.sampler else None
    denoise = clip.denoiser(text, data.text.unconditional, guidance)
    states = ode_states(denoise, clip.noise(len(captions), generator), sigmas)
    kept = []
    for sigma, state in zip(sigmas, states, strict=True):
        if sigma in (*recipe.sigmas, 0.0):
            kept.append(state.to("cpu"))
    return kept[0].map(lambda *parts: torch.stack(parts, 1), *kept[1:])


@dataclass(frozen=True)
class TrajectoryShard:
    """One shard of trajectories to write.

    Attributes:
        name: name of the shard.
        first: number of its first trajectory.
        captions: captions of its trajectories.
    """

    name: str
    first: int
    captions: list[str]


class Integrator:
    """Holds a model on a device and writes shards of trajectories into the folder ``work``."""

    def __init__(
        self, recipe: Recipe, source: Path, device: str, data: TensorShards, work: Path
    ) -> None:
        self.recipe, self.data, self.work = recipe, data, work
        self.model = load_model(source, sinks=0, device=device).eval()

    def __call__(self, task: TrajectoryShard, done: Done) -> None:
        if not is_done(self.work, task.name):
            write_shard(self.work, task.name, self._samples(task, done))

    def _samples(self, task: TrajectoryShard, done: Done) -> Iterator[dict[str, Any]]:
        recipe, size = self.recipe, self.recipe.config.batch
        for offset in range(0, len(task.captions), size):
            part, start = task.captions[offset : offset + size], task.first + offset
            states = trajectory(self.model, recipe, self.data, part, start)
            for i, caption in enumerate(part):
                # Enough to make this one trajectory again.
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
    """Write ``config.count`` trajectories of training captions; finished shards are kept.

    Args:
        recipe: what decides their content.
        source: the model's weights.
        device: device of each worker's model.
        data: training captions and their text features.
        work: folder of finished shards, where a stopped run goes on.
        folder: the data set to write.
        run: runs the workers: here, or on a cluster that sees all folders under the same paths.

    Returns:
        Metrics of the stage.
    """
    config = recipe.config
    available = [caption for _, _, caption, _ in data.samples()]
    captions = [available[i % len(available)] for i in range(config.count)]
    firsts = range(0, config.count, config.per_shard)
    tasks = []
    for n, first in enumerate(firsts):
        own = captions[first : first + config.per_shard]
        tasks.append(TrajectoryShard(f"train-{n:06d}", first, own))
    missing = [task for task in tasks if not is_done(work, task.name)]
    done = config.count - sum(len(task.captions) for task in missing)
    with tqdm(total=config.count, initial=done, desc="trajectories", unit="sample") as progress:
        run(partial(Integrator, recipe, source, device, data, work), missing, progress.update)
    copy_text(data.folder, folder)  # before the manifest, which counts all files
    commit_shards(work, folder, "trajectories", data.grid, [task.name for task in tasks])
    return {"trajectories": config.count, "states": len(recipe.sigmas) + 1}
