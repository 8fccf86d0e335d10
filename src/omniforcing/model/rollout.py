"""The student generates block by block from its own K/V cache (section 3.4, Self-Forcing)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from omniforcing.core.latents import Latents, TextFeatures, concatenate, noise_like
from omniforcing.core.layout import BlockTable, Counts
from omniforcing.core.pair import Pair
from omniforcing.core.schedule import add_noise, to_x0
from omniforcing.core.states import State, join_states, part_of
from omniforcing.model.attention import View
from omniforcing.model.cache import Cache, FunctionalCache, RingCache
from omniforcing.model.conditioning import Sigma, TextCache
from omniforcing.model.options import DEFAULT, InferenceOptions
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream

# Gives the velocity of latents: a ``DualStream``, or recorded forwards of one.
VelocityModel = Callable[[Latents, Sigma, TextCache, View], Latents]


@dataclass(frozen=True)
class RolloutConfig:
    """What a rollout needs besides weights and prompt; the artifact records it.

    Attributes:
        table: the block table.
        grid: spatial tokens of a video latent, (H, W).
        sigmas: the few denoising steps, from 1 downwards.
        window: past blocks visible besides the prefix.
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

    @property
    def rewrite_step(self) -> int:
        """Step from which a block is rewritten: the middle one, but never the first.

        From a step earlier the scene is a new one, from a step later old colours stay
        (docs/results/pocket.md, rollouts that switch).
        """
        return max(1, len(self.sigmas) // 2)


def new_cache(model: DualStream, config: RolloutConfig, static: bool) -> Cache:
    """A functional cache for training, or static buffers for streaming.

    Args:
        model: the causal student.
        config: table, grid, window and horizon.
        static: whether to make static buffers.
    """
    # One cycle beyond the horizon: places there are taken while the kind of block changes.
    counts = config.table.total(config.horizon + 1 + len(config.table.cycle))
    positions = positions_for(model, counts, config.grid, sinks=True)
    kind = RingCache if static else FunctionalCache
    return kind(positions, config.table, config.window, config.horizon)


def gaussian(
    model: DualStream, counts: Counts, grid: tuple[int, int], batch: int, generator: torch.Generator
) -> Latents:
    """Draw Gaussian latents: video ``[B, Tv, S, Cv]``, audio ``[B, Ta, Ca]``."""
    config, device = model.core.config, model.sinks.device
    video = torch.empty(batch, counts.video, grid[0] * grid[1], config.in_channels, device=device)
    audio = torch.empty(batch, counts.audio, config.audio_in_channels, device=device)
    return noise_like(Pair(video, audio), generator)


def few_step(
    model: VelocityModel,
    x: Latents,
    sigmas: Sequence[float],
    text: TextCache,
    view: View,
    generator: torch.Generator,
    exit_step: int | None = None,
) -> Latents:
    """Few-step sampling: predict x0, add fresh noise, repeat.

    The same for a whole clip (Stage I's backward simulation) and for one block of a rollout. Only
    the exit step has gradient, if gradient is enabled.

    Args:
        model: gives velocities.
        x: noise ``[B, T, ...]``.
        sigmas: the denoising steps, from high to low.
        text: the prompt.
        view: which keys the queries see.
        generator: source of the fresh noise.
        exit_step: index of the step whose x0 is returned; None for the last.
    """
    last = len(sigmas) - 1 if exit_step is None else exit_step
    for step in range(last):
        # Backpropagation through all steps would need a graph of each; DMD needs the last alone.
        with torch.no_grad():
            x0 = predict_x0(model, x, sigmas[step], text, view)
            x = noised(x0, sigmas[step + 1], generator)
    return predict_x0(model, x, sigmas[last], text, view)


def noised(x0: Latents, sigma: float, generator: torch.Generator) -> Latents:
    """Noise clean latents to ``sigma``; at 0 they are returned unchanged and nothing is drawn."""
    if sigma == 0:
        return x0
    return x0.map(lambda a, n: add_noise(a, n, sigma), noise_like(x0, generator))


def predict_x0(
    model: VelocityModel, x: Latents, sigma: Tensor | float, text: TextCache, view: View
) -> Latents:
    """The model's clean estimate of latents ``[B, T, ...]`` at ``sigma``, a number or ``[B]``."""
    return x.map(lambda a, v: to_x0(a, v, sigma), model(x, sigma, text, view))


@torch.no_grad()
def refresh(
    model: VelocityModel,
    config: RolloutConfig,
    cache: Cache,
    text: TextCache,
    index: int,
    x0: Latents,
    generator: torch.Generator,
) -> None:
    """Run the forward, at the context noise, that leaves a finished block's K/V in the cache.

    Args:
        model: the causal student.
        config: with the context noise.
        cache: the cache to write to.
        text: the prompt of the block.
        index: the block.
        x0: its clean latents.
        generator: source of the context noise.
    """
    x = noised(x0.map(torch.Tensor.detach), config.context_noise, generator)
    predict_x0(model, x, config.context_noise, text, cache.view(index, write=True))


class Rollout:
    """An endless iterator over blocks of clean latents, for streaming and sampling; no gradient.

    A block's keys and values are written when the next block is asked for, so that it can be
    decoded and shown before that. Blocks are ``[B, T, ...]``.

    Args:
        model: the causal student.
        text: features ``[B, L, D]`` of the prompts.
        config: table, grid, sigmas, window, horizon and context noise.
        generator: source of all noise; the same seed gives the same stream.
        options: what makes the stream fast; the blocks' own options are the model's
            (``accelerate``).

    Raises:
        OmniForcingError: for an option that the device does not have.
    """

    def __init__(
        self,
        model: DualStream,
        text: TextFeatures,
        config: RolloutConfig,
        generator: torch.Generator,
        options: InferenceOptions = DEFAULT,
    ) -> None:
        options.check(model.sinks.device)
        self.model, self.config, self.generator, self.options = model, config, generator, options
        self._student: VelocityModel = model.runner()
        self.index = 0
        self.batch = text.video.shape[0]
        self.switch(text)
        self._cache = new_cache(model, config, static=options.ring)
        # The last block and its prompt, until its keys and values are in the cache.
        self._finished: tuple[Latents, TextCache] | None = None

    @torch.no_grad()
    def switch(self, text: TextFeatures) -> None:
        """Follow other prompts from the next block on."""
        self._text = self.model.cache_text(text)
        if self.options.conditions:
            sigmas: set[float | tuple[float, ...]] = {*self.config.sigmas}
            sigmas.add(self.config.context_noise)
            # From LTX-2.3 on each entry holds keys and values of the prompt: 1.2 GB of the 22B's.
            if self.options.merged:
                sigmas.add(self._merged_sigmas)
            self._text.prepare(sigmas, self.batch)

    @property
    def _merged_sigmas(self) -> tuple[float, float]:
        """Sigmas of a refresh and of a first step, the two groups of a merged forward."""
        return self.config.context_noise, self.config.sigmas[0]

    def __iter__(self) -> Iterator[Latents]:
        return self

    @torch.no_grad()
    def __next__(self) -> Latents:
        return self._take(self._merged() or self._separate())

    @torch.no_grad()
    def begin(self, known: Tensor) -> Latents:
        """Generate block 0 with given first video latents.

        Args:
            known: the video latents ``[B, T, S, C]``; noised, they replace the input's first
                latents at every step (inpainting).
        """
        noise, view = self._noise(), self._cache.view(0)
        # The known latents take part in every step, noised like the rest, so that the others are
        # generated to fit them; at the end their clean values are put back.
        student = _WithKnown(self._student, known, noise.video)
        x0 = few_step(student, noise, self.config.sigmas, self._text, view, self.generator)
        return self._take(Pair(student.replace_first(x0.video, known), x0.audio))

    def follow(self, x0: Latents) -> Latents:
        """Take given latents ``x0`` as the next block, as if they had been generated."""
        self.settle()
        return self._take(x0)

    @torch.no_grad()
    def rewrite(self, x0: Latents) -> Latents:
        """Generate the next block out of ``x0``, noised to the sigma of ``rewrite_step``.

        Noise of that level hides colours and details, not the composition (SDEdit, Meng et al.
        2022).
        """
        self.settle()
        step = self.config.rewrite_step
        x = noised(x0, self.config.sigmas[step], self.generator)
        return self._take(self._denoise(x, first_step=step))

    def _take(self, x0: Latents) -> Latents:
        self._finished = (x0, self._text)
        self.index += 1
        return x0

    def state(self) -> State:
        """A copy of index, cache and random state between two blocks; without the prompt."""
        self.settle()
        own = {"index": torch.tensor(self.index), "generator": self.generator.get_state()}
        return {**join_states(cache=cast(RingCache, self._cache).state()), **own}

    def restore(self, state: State) -> None:
        """Continue, bit for bit, from the ``state`` of a rollout of the same model and prompt."""
        self.index, self._finished = int(state["index"]), None
        self.generator.set_state(state["generator"].cpu())
        cast(RingCache, self._cache).restore(part_of(state, "cache"))

    def _separate(self) -> Latents:
        """Refresh the last block, then run all steps of the present one."""
        self.settle()
        return self._denoise(self._noise(), first_step=0)

    def _denoise(self, x: Latents, first_step: int) -> Latents:
        """Run the present block's steps from ``first_step`` on, out of ``x`` at its sigma."""
        sigmas, view = self.config.sigmas[first_step:], self._cache.view(self.index)
        return few_step(self._student, x, sigmas, self._text, view, self.generator)

    @torch.no_grad()
    def settle(self) -> None:
        """Write the last block's keys and values, if they are not in the cache yet."""
        if self._finished is None:
            return
        x0, text = self._finished
        last, generator = self.index - 1, self.generator
        refresh(self._student, self.config, self._cache, text, last, x0, generator)
        self._finished = None

    def _merged(self) -> Latents | None:
        """Run the refresh and the first step as one forward, then the other steps.

        Returns:
            The block; None where the two cannot be merged: without the option, at the first
            block, and where the prompt has changed, because a forward has one prompt.
        """
        finished = self._finished
        if not self.options.merged or finished is None or finished[1] is not self._text:
            return None
        assert isinstance(self._cache, RingCache)
        sigmas, past = self.config.sigmas, self.config.table.counts(self.index - 1)
        # Drawn in the order of separate forwards, so that merging keeps the stream's noise.
        context = noised(finished[0], self.config.context_noise, self.generator)
        noise = self._noise()
        # The tokens of both blocks in one forward, as two groups with a sigma each; the view
        # lets each see what it would see alone.
        both, view = concatenate([context, noise]), self._cache.merged_view(self.index)
        v = self._student(both, self._merged_sigmas, self._text, view)
        # The refresh only leaves keys and values behind; its velocity is of no use.
        v = Pair(v.video[:, past.video :], v.audio[:, past.audio :])
        x0 = noise.map(lambda a, b: to_x0(a, b, sigmas[0]), v)
        if len(sigmas) == 1:
            return x0
        return self._denoise(noised(x0, sigmas[1], self.generator), first_step=1)

    def _noise(self) -> Latents:
        """Noise of the present block."""
        counts = self.config.table.counts(self.index)
        return gaussian(self.model, counts, self.config.grid, self.batch, self.generator)


class _WithKnown:
    """A model whose first video latents are known.

    Args:
        model: gives velocities.
        known: clean video latents ``[B, T, S, C]``.
        noise: the noise ``[B, Tv, S, C]`` that sampling starts from.
    """

    def __init__(self, model: VelocityModel, known: Tensor, noise: Tensor) -> None:
        self.model, self.known, self.noise = model, known, noise[:, : known.shape[1]]

    @staticmethod
    def replace_first(video: Tensor, first: Tensor) -> Tensor:
        """Replace the first latents of ``video``."""
        return torch.cat([first, video[:, first.shape[1] :]], 1)

    def __call__(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        assert not isinstance(sigma, tuple)
        known = add_noise(self.known, self.noise, sigma)
        return self.model(Pair(self.replace_first(x.video, known), x.audio), sigma, text, view)


def train_rollout(
    model: DualStream,
    texts: Sequence[TextCache],
    config: RolloutConfig,
    batch: int,
    step: int,
    generator: torch.Generator,
) -> list[Latents]:
    """Roll out with gradient through each block's exit forward and a detached history.

    Args:
        model: the causal student.
        texts: the prompt of every block. A block's keys and values are written under its own
            prompt, as in a stream whose prompt changes.
        config: table, grid, sigmas, window, horizon and context noise.
        batch: number of rollouts B.
        step: the step of every block whose clean estimate is the block.
        generator: source of all noise.

    Returns:
        The blocks, ``[B, T, ...]`` each.
    """
    # Every block attends to keys and values of earlier ones: written in place, they would be
    # changed under the graphs of the blocks that have used them.
    cache = new_cache(model, config, static=False)
    assert isinstance(cache, FunctionalCache)
    output: list[Latents] = []
    for index, text in enumerate(texts):
        noise = gaussian(model, config.table.counts(index), config.grid, batch, generator)
        view = cache.view(index)
        output.append(few_step(model, noise, config.sigmas, text, view, generator, step))
        # Nothing reads the last block's keys and values.
        if index + 1 < len(texts):
            refresh(model, config, cache, text, index, output[-1], generator)
    cache.close()
    return output
