"""The teacher: flow matching on clean latents, with text dropout for guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omniforcing.core.config import Config, TeacherConfig
from omniforcing.core.distributed import draw
from omniforcing.core.latents import Batch, Pair, TextFeatures, noise_like
from omniforcing.core.schedule import add_noise, sample_sigma, velocity
from omniforcing.distill.sampling import full_view
from omniforcing.model.attention import View
from omniforcing.model.transformer import DualStream
from omniforcing.training.stages import Backward, Part, StageModule, mean_square


class Teacher(StageModule):
    """Regress the velocity ``eps - x0`` at a random sigma that both streams share."""

    def __init__(
        self,
        model: DualStream,
        config: TeacherConfig,
        view: View,
        unconditional: TextFeatures,
        seed: int,
    ) -> None:
        super().__init__(model, config.optim, seed, config.muon_lr)
        self.config, self.view, self.unconditional = config, view, unconditional

    @classmethod
    def of(
        cls, config: Config, model: DualStream, unconditional: TextFeatures, grid: tuple[int, int]
    ) -> Teacher:
        """As a preset trains it."""
        return cls(
            model,
            config.teacher,
            full_view(model, config.latent_counts, grid),
            unconditional,
            config.seed,
        )

    def training_step(
        self, step: int, data: Batch, optimisers: list[torch.optim.Optimizer], backward: Backward
    ) -> dict[str, Tensor]:
        decay = max(0.5 * (1 + math.cos(math.pi * step / self.optim.steps)), 0.02)
        losses = map(self.loss, self.parts(data, step))
        found, norms = self.update(
            optimisers, backward, self.model, losses, self.config.loss, step, decay
        )
        self.ema.update(self.model, step)
        return self.record(norms, {"loss": found})

    def loss(self, part: Part) -> Pair[Tensor]:
        """Flow matching of one micro-batch."""
        data, generator = part.data, part.generator()
        x0, size, device = data.latents, len(data.text.video), generator.device
        dropped = draw(torch.rand, (size,), generator, device=device) < self.config.text_dropout
        text = data.text.map(
            lambda t, u: torch.where(dropped[:, None, None], u.to(t), t), self.unconditional
        )
        s = self.config.sigma
        sigma = sample_sigma(size, s.low, s.high, s.shift, generator)
        noise = noise_like(x0, generator)
        x = x0.map(lambda a, n: add_noise(a, n, sigma), noise)
        v = self.model(x, sigma, self.model.cache_text(text), self.view)
        return mean_square(v.map(lambda a, a0, n: a - velocity(a0, n), x0, noise))
