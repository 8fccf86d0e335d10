"""Offline samplers of every model: the guided teacher, the few-step bidirectional student, the causal rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import torch

from omniforcing.config import Config, SamplerConfig
from omniforcing.distill.dmd import guided_x0
from omniforcing.latents import Latents, Pair, TextFeatures, concatenate
from omniforcing.layout import Counts
from omniforcing.model.attention import Full
from omniforcing.model.rollout import Rollout, RolloutConfig, few_step, gaussian
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream
from omniforcing.schedule import euler, sampling_sigmas


def full_view(model: DualStream, counts: Counts, grid: tuple[int, int]) -> Full:
    """Full attention over a clip of ``counts`` latents."""
    return Full(positions_for(model, counts, grid, sinks=False))


def rollout_config(config: Config, grid: tuple[int, int]) -> RolloutConfig:
    """The rollout that a preset trains and streams."""
    student = config.student
    return RolloutConfig(config.table, grid, tuple(student.sigmas), student.window, config.horizon, student.context_noise)


@torch.no_grad()
def sample_teacher(
    model: DualStream,
    text: TextFeatures,
    unconditional: TextFeatures,
    counts: Counts,
    grid: tuple[int, int],
    sampler: SamplerConfig,
    generator: torch.Generator,
) -> Latents:
    """Guided Euler sampling of a whole clip, ``[B, T, ...]``; two forwards per step."""
    return list(
        teacher_states(
            model, text, unconditional, counts, grid, sampler, sampling_sigmas(sampler.steps, sampler.shift), generator
        )
    )[-1]


@torch.no_grad()
def teacher_states(
    model: DualStream,
    text: TextFeatures,
    unconditional: TextFeatures,
    counts: Counts,
    grid: tuple[int, int],
    sampler: SamplerConfig,
    sigmas: Sequence[float],
    generator: torch.Generator,
) -> Iterator[Latents]:
    """The states of the guided teacher's probability-flow ODE at ``sigmas``, which end in 0."""
    x = gaussian(model, counts, grid, text.video.shape[0], generator)
    view = full_view(model, counts, grid)
    scale = Pair(*(torch.full((x.video.shape[0],), w) for w in (sampler.guidance.video, sampler.guidance.audio)))
    scale = scale.map(lambda w: w.to(x.video.device))
    yield x
    for sigma, following in pairwise(sigmas):
        at = torch.full((x.video.shape[0],), sigma, device=x.video.device)
        x0 = guided_x0(model, x, at, text, unconditional, scale, view)
        x = x.map(lambda a, a0, s=sigma, n=following: euler(a, (a - a0) / s, s, n), x0)
        yield x


@torch.no_grad()
def few_step_states(
    model: DualStream,
    text: TextFeatures,
    counts: Counts,
    grid: tuple[int, int],
    sigmas: Sequence[float],
    generator: torch.Generator,
) -> Iterator[Latents]:
    """The states of the few-step student's probability-flow ODE at ``sigmas``, which end in 0; no guidance."""
    x = gaussian(model, counts, grid, text.video.shape[0], generator)
    view, cache = full_view(model, counts, grid), model.cache_text(text)
    yield x
    for sigma, following in pairwise(sigmas):
        v = model(x, torch.full((x.video.shape[0],), sigma, device=x.video.device), cache, view)
        x = x.map(lambda a, b, s=sigma, n=following: euler(a, b, s, n), v)
        yield x


@torch.no_grad()
def sample_few_step(
    model: DualStream,
    text: TextFeatures,
    counts: Counts,
    grid: tuple[int, int],
    sigmas: Sequence[float],
    generator: torch.Generator,
) -> Latents:
    """Few-step sampling of a whole clip with fresh re-noising, as Stage I trains it."""
    noise = gaussian(model, counts, grid, text.video.shape[0], generator)
    return few_step(model, noise, sigmas, model.cache_text(text), full_view(model, counts, grid), generator)


def sample_rollout(
    model: DualStream, text: TextFeatures, config: RolloutConfig, blocks: int, generator: torch.Generator
) -> Latents:
    """The first ``blocks`` blocks of the causal student's stream, joined."""
    return concatenate(list(islice(Rollout(model, text, config, generator), blocks)))
