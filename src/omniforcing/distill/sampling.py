"""Offline samplers: guided teacher, few-step bidirectional student, causal rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from omniforcing.core.latents import Latents, TextFeatures, concatenate
from omniforcing.core.layout import Counts
from omniforcing.core.pair import Pair
from omniforcing.core.schedule import euler, sampling_sigmas
from omniforcing.distill.config import SamplerConfig
from omniforcing.distill.guidance import cache_guided, guided_x0
from omniforcing.model.attention import Full
from omniforcing.model.config import StudentConfig
from omniforcing.model.rollout import Rollout, RolloutConfig, few_step, gaussian, predict_x0
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream
from omniforcing.training.config import Weights

# Gives the clean estimate of latents ``[B, T, ...]`` at a sigma that the whole batch shares.
Denoiser = Callable[[Latents, float], Latents]


def full_view(model: DualStream, counts: Counts, grid: tuple[int, int]) -> Full:
    """Full attention over a clip of ``counts`` latents."""
    return Full(positions_for(model, counts, grid, sinks=False))


def rollout_config(student: StudentConfig, counts: Counts, grid: tuple[int, int]) -> RolloutConfig:
    """The rollout that a student trains and streams.

    Args:
        student: its section.
        counts: latents of a training clip.
        grid: spatial tokens of a video latent, (H, W).
    """
    return RolloutConfig(
        student.table,
        grid,
        tuple(student.sigmas),
        student.window,
        student.horizon(counts),
        student.context_noise,
    )


class WholeClip:
    """A bidirectional model on clips of one length; samplers cache a prompt's text K/V once.

    Args:
        model: the model.
        counts: latents of a clip.
        grid: spatial tokens of a video latent, (H, W).
    """

    def __init__(self, model: DualStream, counts: Counts, grid: tuple[int, int]) -> None:
        self.model, self.counts, self.grid = model, counts, grid
        self.view = full_view(model, counts, grid)

    def noise(self, batch: int, generator: torch.Generator) -> Latents:
        """Draw the noise that sampling starts from, ``[B, T, ...]``."""
        return gaussian(self.model, self.counts, self.grid, batch, generator)

    @torch.no_grad()
    def plain(self, text: TextFeatures) -> Denoiser:
        """Denoise without guidance, as a few-step student is used; text ``[B, L, D]``."""
        cache = self.model.cache_text(text)
        return lambda x, sigma: predict_x0(self.model, x, sigma, cache, self.view)

    @torch.no_grad()
    def guided(
        self, text: TextFeatures, unconditional: TextFeatures, guidance: Weights
    ) -> Denoiser:
        """Denoise with classifier-free guidance, as a teacher is used.

        Args:
            text: features ``[B, L, D]`` of the prompts.
            unconditional: features ``[1, L, D]`` of the empty prompt.
            guidance: scales of video and audio.
        """
        cache, like = cache_guided(self.model, text, unconditional), text.video
        shape = (len(like),)
        scale = Pair(like.new_full(shape, guidance.video), like.new_full(shape, guidance.audio))

        def denoise(x: Latents, sigma: float) -> Latents:
            return guided_x0(self.model, x, like.new_full(shape, sigma), cache, scale, self.view)

        return denoise

    def denoiser(
        self, text: TextFeatures, unconditional: TextFeatures, guidance: Weights | None
    ) -> Denoiser:
        """Denoise with guidance, or without it (None)."""
        return self.plain(text) if guidance is None else self.guided(text, unconditional, guidance)

    def sample_guided(
        self,
        text: TextFeatures,
        unconditional: TextFeatures,
        sampler: SamplerConfig,
        generator: torch.Generator,
    ) -> Latents:
        """Sample ``[B, T, ...]`` by guided Euler steps, two forwards each, as one batch."""
        x = self.noise(len(text.video), generator)
        denoise = self.guided(text, unconditional, sampler.guidance)
        *_, last = ode_states(denoise, x, sampling_sigmas(sampler.steps, sampler.shift))
        return last

    @torch.no_grad()
    def sample_few_step(
        self, text: TextFeatures, sigmas: Sequence[float], generator: torch.Generator
    ) -> Latents:
        """Sample ``[B, T, ...]`` in few steps with fresh noise, as Stage I trains it."""
        noise, cached = self.noise(len(text.video), generator), self.model.cache_text(text)
        return few_step(self.model, noise, sigmas, cached, self.view, generator)


@torch.no_grad()
def ode_states(denoise: Denoiser, x: Latents, sigmas: Sequence[float]) -> Iterator[Latents]:
    """Yield the states of the probability-flow ODE, one at each sigma.

    Args:
        denoise: gives clean estimates.
        x: the first state, noise ``[B, T, ...]``.
        sigmas: from 1 down to 0.
    """
    yield x
    for sigma, following in pairwise(sigmas):

        def step(a: Tensor, a0: Tensor, s: float = sigma, n: float = following) -> Tensor:
            return euler(a, (a - a0) / s, s, n)

        x = x.map(step, denoise(x, sigma))
        yield x


def sample_rollout(
    model: DualStream,
    text: TextFeatures,
    config: RolloutConfig,
    blocks: int,
    generator: torch.Generator,
) -> Latents:
    """Sample the first ``blocks`` blocks of the causal student's stream, ``[B, T, ...]``."""
    return concatenate(list(islice(Rollout(model, text, config, generator), blocks)))
