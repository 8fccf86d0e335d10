"""The teacher: flow matching on clean latents, with text dropout for guidance."""

from __future__ import annotations

import math

import torch

from omniforcing.config import TeacherConfig
from omniforcing.distill.common import StageModule, matrices, mean_square, weighted
from omniforcing.latents import Batch, TextFeatures, noise_like
from omniforcing.model.attention import View
from omniforcing.model.transformer import DualStream
from omniforcing.schedule import add_noise, sample_sigma, velocity


class Teacher(StageModule):
    """Regress the velocity ``eps - x0`` at a random sigma that both streams share."""

    def __init__(self, model: DualStream, config: TeacherConfig, view: View, unconditional: TextFeatures, seed: int) -> None:
        super().__init__(model, config.optim, seed)
        self.config, self.view, self.unconditional = config, view, unconditional

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        if self.config.muon_lr is None:
            return [self.adamw(self.model, self.optim.lr)]
        inside = matrices(self.model)
        return [self.adamw(self.model, self.optim.lr, left_out=inside), self.muon(inside, self.config.muon_lr)]

    def training_step(self, batch: tuple[int, Batch], _index: int) -> None:
        step, data = batch
        generator, x0 = self.generator(step), data.latents
        size = x0.video.shape[0]
        dropped = torch.rand(size, generator=generator, device=self.device) < self.config.text_dropout
        text = data.text.map(lambda t, u: torch.where(dropped[:, None, None], u.to(t), t), self.unconditional)
        s = self.config.sigma
        sigma = sample_sigma(size, s.low, s.high, s.shift, generator)
        noise = noise_like(x0, generator)
        x = x0.map(lambda a, n: add_noise(a, n, sigma), noise)
        v = self.model(x, sigma, self.model.cache_text(text), self.view)
        losses = mean_square(v.map(lambda a, a0, n: a - velocity(a0, n), x0, noise))
        decay = 0.5 * (1 + math.cos(math.pi * step / self.optim.steps))
        norms = self.update(self.optimizers(), self.model, weighted(losses, self.config.loss), step, max(decay, 0.02))
        self.ema.update(self.model, step)
        self.record(norms, {"loss": losses})
