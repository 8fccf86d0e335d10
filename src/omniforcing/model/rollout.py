"""The student generating block by block from its own K/V cache (paper section 3.4, Self-Forcing)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from omniforcing.core.latents import Latents, Pair, TextFeatures, concatenate, noise_like
from omniforcing.core.layout import BlockTable, Counts
from omniforcing.core.schedule import add_noise, to_x0
from omniforcing.core.states import State, joined, part_of
from omniforcing.model.attention import View
from omniforcing.model.cache import Cache, FunctionalCache, RingCache
from omniforcing.model.conditioning import Sigma, TextCache
from omniforcing.model.options import DEFAULT, Speed
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream

# The velocity of latents: a ``DualStream``, or what stands for it.
Student = Callable[[Latents, Sigma, TextCache, View], Latents]


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


def gaussian(
    model: DualStream, counts: Counts, grid: tuple[int, int], batch: int, generator: torch.Generator
) -> Latents:
    """Gaussian latents of ``counts`` latents of each stream, in the model's channels."""
    config, device = model.core.config, model.sinks.device
    video = torch.empty(batch, counts.video, grid[0] * grid[1], config.in_channels, device=device)
    return noise_like(
        Pair(video, torch.empty(batch, counts.audio, config.audio_in_channels, device=device)),
        generator,
    )


def few_step(
    model: Student,
    x: Latents,
    sigmas: Sequence[float],
    text: TextCache,
    view: View,
    generator: torch.Generator,
    exit_step: int | None = None,
) -> Latents:
    """Few-step sampling from noise ``x``: x0 prediction, fresh re-noising, stop after ``exit_step`` (default: the last).

    The same for a whole clip (Stage I's backward simulation) and for one block of a rollout. Only the exit step carries
    gradient, when gradient is on at all.
    """
    last = len(sigmas) - 1 if exit_step is None else exit_step
    wanted = torch.is_grad_enabled()
    for step in range(last):
        with torch.no_grad():
            x0 = predict_x0(model, x, sigmas[step], text, view)
            x = noised(x0, sigmas[step + 1], generator)
    with torch.set_grad_enabled(wanted):
        return predict_x0(model, x, sigmas[last], text, view)


def noised(x0: Latents, sigma: float, generator: torch.Generator) -> Latents:
    """Clean latents brought to ``sigma`` with fresh noise; at 0 as they are, and nothing is drawn."""
    return (
        x0.map(lambda a, n: add_noise(a, n, sigma), noise_like(x0, generator)) if sigma > 0 else x0
    )


def predict_x0(model: Student, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
    """The model's clean estimate of latents at ``sigma``, a number or ``[B]``."""
    return x.map(lambda a, v: to_x0(a, v, sigma), model(x, sigma, text, view))


@torch.no_grad()
def refresh(
    model: Student,
    config: RolloutConfig,
    cache: Cache,
    text: TextCache,
    index: int,
    x0: Latents,
    generator: torch.Generator,
) -> None:
    """The forward at the context noise that leaves a finished block's K/V in the cache."""
    x = noised(x0.map(torch.Tensor.detach), config.context_noise, generator)
    predict_x0(model, x, config.context_noise, text, cache.view(index, write=True))


class Rollout:
    """An endless iterator over blocks of clean latents, for streaming and sampling; no gradient.

    Args:
        model: the causal student.
        text: features of the prompts; their batch is the rollout's.
        generator: source of all noise; the same seed gives the same stream.
        speed: which speed-ups to use; those of layers are the model's (``accelerate``).

    Raises:
        OmniForcingError: for a speed-up that the device does not have.
    """

    def __init__(
        self,
        model: DualStream,
        text: TextFeatures,
        config: RolloutConfig,
        generator: torch.Generator,
        speed: Speed = DEFAULT,
    ) -> None:
        speed.check(model.sinks.device)
        self.model, self.config, self.generator, self.speed = model, config, generator, speed
        self._student: Student = model.replayed()
        self.index = 0
        self.batch = text.video.shape[0]
        self.switch(text)
        self._cache = new_cache(model, config, static=speed.ring)
        self._finished: tuple[Latents, TextCache] | None = None

    @torch.no_grad()
    def switch(self, text: TextFeatures) -> None:
        """Follow other prompts from the next block on."""
        self._text = self.model.cache_text(text)
        if self.speed.conditions:
            self._text.prepare(
                {*self.config.sigmas, self.config.context_noise, self._pair}, self.batch
            )

    @property
    def _pair(self) -> tuple[float, float]:
        """Noise of a refresh and of a first step."""
        return self.config.context_noise, self.config.sigmas[0]

    def __iter__(self) -> Iterator[Latents]:
        return self

    @torch.no_grad()
    def __next__(self) -> Latents:
        return self._take(self._merged() or self._separate())

    @torch.no_grad()
    def begin(self, known: Tensor) -> Latents:
        """Block 0 whose first video latents are ``known`` ``[B, T, S, C]``: they stand in, noised, at every step."""
        noise, view = self._noise(), self._cache.view(0)
        student = _Known(self._student, known, noise.video)
        x0 = few_step(student, noise, self.config.sigmas, self._text, view, self.generator)
        return self._take(Pair(student.put(x0.video, known), x0.audio))

    def follow(self, x0: Latents) -> Latents:
        """Take ``x0`` as the next block, as if it had been generated; returns it."""
        self._refresh()
        return self._take(x0)

    @torch.no_grad()
    def rewrite(self, x0: Latents) -> Latents:
        """Take as the next block what the student makes of ``x0`` under its prompt, from the second of its sigmas on.

        Noise of that level hides colours and details, not where things are (SDEdit, Meng et al. 2022).
        """
        self._refresh()
        return self._take(self._denoise(noised(x0, self.config.sigmas[1], self.generator), 1))

    def _take(self, x0: Latents) -> Latents:
        self._finished = (x0, self._text)
        self.index += 1
        return x0

    def state(self) -> State:
        """A copy of index, cache and random state at a border between blocks; the prompt is the caller's."""
        self._refresh()
        own = {"index": torch.tensor(self.index), "generator": self.generator.get_state()}
        return {**joined(cache=cast(RingCache, self._cache).state()), **own}

    def restore(self, state: State) -> None:
        """Go on from the ``state`` of a rollout with the same model, table and prompt, bit for bit."""
        self.index, self._finished = int(state["index"]), None
        self.generator.set_state(state["generator"].cpu())
        cast(RingCache, self._cache).restore(part_of(state, "cache"))

    def _separate(self) -> Latents:
        """The last block's refresh, then all steps of this one."""
        self._refresh()
        return self._denoise(self._noise(), 0)

    def _denoise(self, x: Latents, step: int) -> Latents:
        """The present block out of ``x``, its latents at ``step``'s sigma."""
        view = self._cache.view(self.index)
        return few_step(
            self._student, x, self.config.sigmas[step:], self._text, view, self.generator
        )

    def _refresh(self) -> None:
        # Only now, so that a block can be decoded and shown before its K/V are written, and the last one's never are.
        if self._finished is not None:
            x0, text = self._finished
            refresh(
                self._student, self.config, self._cache, text, self.index - 1, x0, self.generator
            )
            self._finished = None

    def _merged(self) -> Latents | None:
        """The refresh and the first step in one forward, then the other steps; None where there is nothing to merge."""
        if not self.speed.merged or self._finished is None or self._finished[1] is not self._text:
            return None
        assert isinstance(self._cache, RingCache)
        sigmas, past = self.config.sigmas, self.config.table.counts(self.index - 1)
        context = noised(self._finished[0], self.config.context_noise, self.generator)
        noise = self._noise()
        both = concatenate([context, noise])
        v = self._student(both, self._pair, self._text, self._cache.merged_view(self.index))
        v = Pair(v.video[:, past.video :], v.audio[:, past.audio :])
        x0 = noise.map(lambda a, b: to_x0(a, b, sigmas[0]), v)
        if len(sigmas) == 1:
            return x0
        return self._denoise(noised(x0, sigmas[1], self.generator), 1)

    def _noise(self) -> Latents:
        """Where the present block starts."""
        return gaussian(
            self.model,
            self.config.table.counts(self.index),
            self.config.grid,
            self.batch,
            self.generator,
        )


class _Known:
    """A model that sees known video latents, noised to the step's sigma, in place of the first ones of its input."""

    def __init__(self, model: Student, known: Tensor, noise: Tensor) -> None:
        self.model, self.known, self.noise = model, known, noise[:, : known.shape[1]]

    @staticmethod
    def put(video: Tensor, first: Tensor) -> Tensor:
        return torch.cat([first, video[:, first.shape[1] :]], 1)

    def __call__(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        known = add_noise(self.known, self.noise, sigma)
        return self.model(Pair(self.put(x.video, known), x.audio), sigma, text, view)


def train_rollout(
    model: DualStream,
    texts: Sequence[TextCache],
    config: RolloutConfig,
    batch: int,
    step: int,
    generator: torch.Generator,
) -> list[Latents]:
    """A self-forcing rollout with gradient through each block's exit forward and a detached history.

    Args:
        texts: of every block; a block's K/V are written under its own text, as when a stream switches.
        batch: rollouts beside each other.
        step: the step of every block whose clean estimate is the block.
    """
    cache = new_cache(model, config, static=False)
    output: list[Latents] = []
    for index, text in enumerate(texts):
        noise = gaussian(model, config.table.counts(index), config.grid, batch, generator)
        output.append(
            few_step(model, noise, config.sigmas, text, cache.view(index), generator, step)
        )
        if index + 1 < len(texts):
            refresh(model, config, cache, text, index, output[-1], generator)
    return output
