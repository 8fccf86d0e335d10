"""Offline samplers of every model: the guided teacher, the few-step bidirectional student, the causal rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise

import torch

from omniforcing.core.config import Config, SamplerConfig, Weights
from omniforcing.core.latents import Latents, Pair, TextFeatures, concatenate
from omniforcing.core.layout import Counts
from omniforcing.core.schedule import euler, sampling_sigmas
from omniforcing.distill.dmd import cache_guided, guided_x0
from omniforcing.model.attention import Full
from omniforcing.model.rollout import Rollout, RolloutConfig, few_step, gaussian, predict_x0
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream

# The clean estimate of latents at a sigma that the whole batch shares.
Denoiser = Callable[[Latents, float], Latents]


def full_view(model: DualStream, counts: Counts, grid: tuple[int, int]) -> Full:
    """Full attention over a clip of ``counts`` latents."""
    return Full(positions_for(model, counts, grid, sinks=False))


def rollout_config(config: Config, grid: tuple[int, int]) -> RolloutConfig:
    """The rollout that a preset trains and streams."""
    student = config.student
    return RolloutConfig(
        config.table,
        grid,
        tuple(student.sigmas),
        student.window,
        config.horizon,
        student.context_noise,
    )


class WholeClip:
    """A bidirectional model on clips of one length; samplers cache a prompt's text K/V once."""

    def __init__(self, model: DualStream, counts: Counts, grid: tuple[int, int]) -> None:
        self.model, self.counts, self.grid = model, counts, grid
        self.view = full_view(model, counts, grid)

    def noise(self, batch: int, generator: torch.Generator) -> Latents:
        """Where sampling starts, ``[B, T, ...]``."""
        return gaussian(self.model, self.counts, self.grid, batch, generator)

    @torch.no_grad()
    def plain(self, text: TextFeatures) -> Denoiser:
        """The model without guidance, as a few-step student is used."""
        cache = self.model.cache_text(text)
        return lambda x, sigma: predict_x0(self.model, x, sigma, cache, self.view)

    @torch.no_grad()
    def guided(
        self, text: TextFeatures, unconditional: TextFeatures, guidance: Weights
    ) -> Denoiser:
        """The model with classifier-free guidance, as a teacher is used."""
        cache, like = cache_guided(self.model, text, unconditional), text.video
        scale = Pair(*(like.new_full((len(like),), w) for w in (guidance.video, guidance.audio)))
        return lambda x, sigma: guided_x0(
            self.model, x, like.new_full((len(like),), sigma), cache, scale, self.view
        )

    def denoiser(
        self, text: TextFeatures, unconditional: TextFeatures, guidance: Weights | None
    ) -> Denoiser:
        """The model with guidance, or without (None)."""
        return self.plain(text) if guidance is None else self.guided(text, unconditional, guidance)

    def sample_guided(
        self,
        text: TextFeatures,
        unconditional: TextFeatures,
        sampler: SamplerConfig,
        generator: torch.Generator,
    ) -> Latents:
        """Guided Euler sampling, ``[B, T, ...]``; two forwards per step, as one batch."""
        x, denoise = (
            self.noise(len(text.video), generator),
            self.guided(text, unconditional, sampler.guidance),
        )
        *_, last = ode_states(denoise, x, sampling_sigmas(sampler.steps, sampler.shift))
        return last

    @torch.no_grad()
    def sample_few_step(
        self, text: TextFeatures, sigmas: Sequence[float], generator: torch.Generator
    ) -> Latents:
        """Few-step sampling with fresh re-noising, as Stage I trains it."""
        noise = self.noise(len(text.video), generator)
        return few_step(
            self.model, noise, sigmas, self.model.cache_text(text), self.view, generator
        )


@torch.no_grad()
def ode_states(denoise: Denoiser, x: Latents, sigmas: Sequence[float]) -> Iterator[Latents]:
    """The states of the probability-flow ODE from ``x`` on, one at each of ``sigmas``, which end in 0."""
    yield x
    for sigma, following in pairwise(sigmas):
        x = x.map(
            lambda a, a0, s=sigma, n=following: euler(a, (a - a0) / s, s, n), denoise(x, sigma)
        )
        yield x


def sample_rollout(
    model: DualStream,
    text: TextFeatures,
    config: RolloutConfig,
    blocks: int,
    generator: torch.Generator,
) -> Latents:
    """The first ``blocks`` blocks of the causal student's stream, joined."""
    return concatenate(list(islice(Rollout(model, text, config, generator), blocks)))
