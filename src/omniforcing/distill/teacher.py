"""The teacher: flow matching on clean latents, with text dropout for guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omniforcing.core.distributed import draw
from omniforcing.core.latents import Batch, TextFeatures, noise_like
from omniforcing.core.layout import Counts
from omniforcing.core.pair import Pair
from omniforcing.core.schedule import add_noise, sample_sigma, velocity
from omniforcing.distill.config import TeacherConfig
from omniforcing.distill.sampling import full_view
from omniforcing.model.attention import View
from omniforcing.model.transformer import DualStream
from omniforcing.training.stages import (
    DEFAULT,
    Backward,
    MicroBatch,
    Optimisers,
    StageModule,
    TrainingOptions,
    mean_square,
)


class Teacher(StageModule):
    """Regress the velocity ``eps - x0`` at a random sigma that both streams share.

    Args:
        model: the bidirectional model to train.
        config: optimiser, noise levels, text dropout and loss weights.
        view: full attention over a training clip.
        unconditional: features of the empty prompt, ``[1, L, D]`` per stream.
        seed: the run's seed.
        options: micro-batches and sharding.
    """

    def __init__(
        self,
        model: DualStream,
        config: TeacherConfig,
        view: View,
        unconditional: TextFeatures,
        seed: int,
        options: TrainingOptions = DEFAULT,
    ) -> None:
        super().__init__(model, config.optim, seed, config.muon_lr, options)
        self.config, self.view, self.unconditional = config, view, unconditional

    @classmethod
    def from_config(
        cls,
        config: TeacherConfig,
        model: DualStream,
        unconditional: TextFeatures,
        counts: Counts,
        grid: tuple[int, int],
        seed: int,
        options: TrainingOptions = DEFAULT,
    ) -> Teacher:
        """Build the training from its section.

        Args:
            config: section of the teacher.
            model: the network to train.
            unconditional: features of the empty prompt.
            counts: latents of a training clip.
            grid: spatial tokens of a video latent, (H, W).
            seed: of all randomness.
            options: micro-batches and sharding.
        """
        return cls(model, config, full_view(model, counts, grid), unconditional, seed, options)

    def training_step(
        self, step: int, data: Batch, optimisers: Optimisers, backward: Backward
    ) -> dict[str, Tensor]:
        update = self.begin_update(optimisers, backward)
        for micro_batch in self.micro_batches(data, step):
            update.add(self.loss(micro_batch))
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.optim.steps))
        norms = update.step(self.model, step, factor=max(cosine, 0.02))
        self.ema.update(self.model, step)
        return self.record(norms, {"loss": update.losses})

    def loss(self, micro_batch: MicroBatch) -> Pair[Tensor]:
        """Flow-matching loss of one micro-batch, a scalar per modality."""
        data, generator = micro_batch.data, micro_batch.generator()
        x0 = data.latents
        text = self.drop_text(data.text, generator)
        s = self.config.sigma
        sigma = sample_sigma(len(data.text.video), s.low, s.high, s.shift, generator)
        noise = noise_like(x0, generator)
        x = x0.map(lambda a, n: add_noise(a, n, sigma), noise)
        v = self.model(x, sigma, self.model.cache_text(text), self.view)
        return mean_square(v.map(lambda a, a0, n: a - velocity(a0, n), x0, noise))

    def drop_text(self, text: TextFeatures, generator: torch.Generator) -> TextFeatures:
        """Replace a random share of the prompts ``[B, L, D]`` by the empty one, for guidance."""
        shape, device = (len(text.video),), generator.device
        dropped = draw(torch.rand, shape, generator, device=device) < self.config.text_dropout
        mask = dropped[:, None, None]
        return text.map(lambda t, u: torch.where(mask, u.to(t), t), self.unconditional)
