"""The student generating block by block from its own K/V cache (paper section 3.4, Self-Forcing)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from omniforcing.latents import Latents, Pair, TextFeatures, noise_like
from omniforcing.layout import BlockTable
from omniforcing.model.cache import Cache, FunctionalCache, RingCache
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream, TextCache
from omniforcing.schedule import add_noise, to_x0


@dataclass(frozen=True)
class RolloutConfig:
    """What a rollout needs beside weights and prompt; the artifact records it.

    Attributes:
        table: the block table.
        grid: spatial tokens of a video latent, (H, W).
        sigmas: the few denoising steps, from 1 downwards.
        window: past blocks visible beside the prefix.
        horizon: index of the last block seen in training.
        context_noise: sigma of the refresh forward.
    """

    table: BlockTable
    grid: tuple[int, int]
    sigmas: tuple[float, ...]
    window: int
    horizon: int
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        self.table.check_window(self.window, self.horizon)


def new_cache(model: DualStream, config: RolloutConfig, static: bool) -> Cache:
    """A functional cache for training, or static buffers for streaming."""
    counts = config.table.total(config.horizon + 1 + len(config.table.cycle))
    positions = positions_for(model, counts, config.grid, sinks=True)
    kind = RingCache if static else FunctionalCache
    return kind(positions, config.table, config.window, config.horizon)


def block_noise(model: DualStream, config: RolloutConfig, index: int, batch: int, generator: torch.Generator) -> Latents:
    """Gaussian latents of one block."""
    counts, core = config.table.counts(index), model.core
    like = Pair(
        torch.empty(batch, counts.video, config.grid[0] * config.grid[1], core.config.in_channels, device=core.device),
        torch.empty(batch, counts.audio, core.config.audio_in_channels, device=core.device),
    )
    return noise_like(like, generator)


def denoise_block(
    model: DualStream,
    config: RolloutConfig,
    cache: Cache,
    text: TextCache,
    index: int,
    x: Latents,
    generator: torch.Generator,
    exit_step: int | None = None,
) -> Latents:
    """Few-step sampling of one block: x0 prediction, fresh re-noising, stop after ``exit_step`` (default: the last).

    Only the exit step carries gradient (when gradient is on at all).
    """
    last = len(config.sigmas) - 1 if exit_step is None else exit_step
    for step in range(last + 1):
        sigma = torch.full((x.video.shape[0],), config.sigmas[step], device=x.video.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and step == last):
            v = model(x, sigma, text, cache.view(index))
            x0 = x.map(lambda a, b, s=sigma: to_x0(a, b, s), v)
        if step == last:
            return x0
        x = x0.map(lambda a, n, s=config.sigmas[step + 1]: add_noise(a, n, s), noise_like(x0, generator))
    raise AssertionError("unreachable: a rollout has at least one step")


@torch.no_grad()
def refresh(
    model: DualStream,
    config: RolloutConfig,
    cache: Cache,
    text: TextCache,
    index: int,
    x0: Latents,
    generator: torch.Generator,
) -> None:
    """The forward at the context noise that leaves a finished block's K/V in the cache."""
    s = config.context_noise
    x = x0.map(lambda a: a.detach())
    if s > 0:
        x = x.map(lambda a, n: add_noise(a, n, s), noise_like(x, generator))
    sigma = torch.full((x.video.shape[0],), s, device=x.video.device)
    model(x, sigma, text, cache.view(index, write=True))


class Rollout:
    """An endless iterator over blocks of clean latents, for streaming and sampling; no gradient.

    Args:
        model: the causal student.
        text: features of the prompts; their batch is the rollout's.
        generator: source of all noise; the same seed gives the same stream.
    """

    def __init__(self, model: DualStream, text: TextFeatures, config: RolloutConfig, generator: torch.Generator) -> None:
        self.model, self.config, self.generator = model, config, generator
        self.index = 0
        self.batch = text.video.shape[0]
        self.switch(text)
        self._cache = new_cache(model, config, static=True)

    @torch.no_grad()
    def switch(self, text: TextFeatures) -> None:
        """Follow other prompts from the next block on."""
        self._text: TextCache = self.model.cache_text(text)

    def __iter__(self) -> Iterator[Latents]:
        return self

    @torch.no_grad()
    def __next__(self) -> Latents:
        noise = block_noise(self.model, self.config, self.index, self.batch, self.generator)
        x0 = denoise_block(self.model, self.config, self._cache, self._text, self.index, noise, self.generator)
        refresh(self.model, self.config, self._cache, self._text, self.index, x0, self.generator)
        self.index += 1
        return x0


def exit_step(steps: int, generator: torch.Generator) -> int:
    """The random exit of a self-forcing rollout, uniform over the student's steps."""
    return int(torch.randint(steps, (), generator=generator, device=generator.device))


def train_rollout(
    model: DualStream, text: TextCache, config: RolloutConfig, batch: int, blocks: int, step: int, generator: torch.Generator
) -> list[Latents]:
    """Blocks of a self-forcing rollout with gradient through each block's exit forward and a detached history."""
    cache = new_cache(model, config, static=False)
    output = []
    for index in range(blocks):
        noise = block_noise(model, config, index, batch, generator)
        output.append(denoise_block(model, config, cache, text, index, noise, generator, step))
        if index + 1 < blocks:
            refresh(model, config, cache, text, index, output[-1], generator)
    return output


def sigma_per_block(values: Tensor, table: BlockTable, count: int) -> Pair[Tensor]:
    """Spread ``values [B, blocks]`` over the latents of both streams: ``[B, Tv]`` and ``[B, Ta]``."""
    return Pair(values[:, list(table.video_owner(count))], values[:, list(table.audio_owner(count))])
