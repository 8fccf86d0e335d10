"""ODE pairs: states of a model's probability-flow ODE at the student's sigmas, kept in tensor shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from omniforcing.config import SamplerConfig, TrajectoriesConfig
from omniforcing.data.tensors import TensorShards, commit_shards, copy_text, from_tokens, to_sample
from omniforcing.distill.sampling import WholeClip, ode_states
from omniforcing.errors import OmniForcingError
from omniforcing.latents import Latents
from omniforcing.layout import Counts
from omniforcing.model.transformer import DualStream
from omniforcing.seeding import step_generator


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

    @property
    def refinement(self) -> int:
        """Euler steps between two kept sigmas.

        Raises:
            OmniForcingError: if the steps do not divide evenly.
        """
        substeps, rest = divmod(self.config.steps, len(self.sigmas))
        if rest or not substeps:
            raise OmniForcingError(
                f"trajectories.steps is {self.config.steps}; it must be a multiple of the {len(self.sigmas)} student.sigmas"
            )
        return substeps


def refine(sigmas: Sequence[float], substeps: int) -> list[float]:
    """Split every interval of ``[*sigmas, 0]`` into equal substeps; every ``substeps``-th value is one of the sigmas."""
    fine = [high + (low - high) * i / substeps for high, low in pairwise([*sigmas, 0.0]) for i in range(substeps)]
    return [*fine, 0.0]


def trajectory(model: DualStream, recipe: Recipe, data: TensorShards, captions: list[str], number: int) -> Latents:
    """States at the student's sigmas and at 0 for a batch of captions: ``[B, K, T, ...]``, on the CPU."""
    substeps = recipe.refinement
    sigmas, device = refine(recipe.sigmas, substeps), model.sinks.device
    text = data.text.of(captions).to(device)
    generator = step_generator(recipe.seed, number, "trajectories", device)
    clip = WholeClip(model, recipe.counts, data.grid)
    guided = recipe.sampler and clip.guided(text, data.text.unconditional, recipe.sampler.guidance)
    states = ode_states(guided or clip.plain(text), clip.noise(len(captions), generator), sigmas)
    kept = [state.to("cpu") for i, state in enumerate(states) if i % substeps == 0]
    return kept[0].map(lambda *parts: torch.stack(parts, 1), *kept[1:])


def write_trajectories(recipe: Recipe, model: DualStream, data: TensorShards, work: Path, folder: Path) -> dict[str, Any]:
    """Write ``config.count`` trajectories of training captions; finished shards in ``work`` are not made again."""
    config = recipe.config
    available = [caption for _, _, caption, _ in data.samples()]
    captions = [available[i % len(available)] for i in range(config.count)]
    numbers = range(0, config.count, config.per_shard)
    with tqdm(total=config.count, desc="trajectories", unit="sample") as progress:

        def samples(first: int) -> Iterator[dict[str, Any]]:
            last = min(first + config.per_shard, config.count)
            for start in range(first, last, config.batch):
                part = captions[start : min(start + config.batch, last)]
                states = trajectory(model, recipe, data, part, start)
                for i, caption in enumerate(part):
                    info = {
                        "seed": recipe.seed,
                        "number": start,
                        "row": i,
                        "model": recipe.source,
                        "sigmas": [*recipe.sigmas, 0.0],
                    }
                    yield to_sample(f"{start + i:06d}", from_tokens(states.map(lambda s, i=i: s[i]), data.grid), caption, info)
                progress.update(len(part))

        shards = {f"train-{n:06d}": samples(first) for n, first in enumerate(numbers)}
        commit_shards(work, folder, "trajectories", data.grid, shards)
    copy_text(data.folder, folder)
    return {"trajectories": config.count, "states": len(recipe.sigmas) + 1}
