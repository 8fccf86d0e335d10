"""Distribution matching distillation: the gradient that teacher and critic give a sample, and the critic's own loss.

Yin et al., DMD2; paper sections 3.2 and 3.4. Both functions treat video and audio alike and share one sigma per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omniforcing.core.config import DmdConfig, Weights
from omniforcing.core.distributed import draw
from omniforcing.core.latents import Batch, Latents, Pair, TextFeatures, noise_like
from omniforcing.core.schedule import add_noise, guide, sample_sigma, velocity
from omniforcing.model.attention import View
from omniforcing.model.conditioning import TextCache
from omniforcing.model.rollout import predict_x0
from omniforcing.model.transformer import DualStream
from omniforcing.training.stages import Backward, Part, StageModule, mean_square


def cache_guided(teacher: DualStream, text: TextFeatures, unconditional: TextFeatures) -> TextCache:
    """Text K/V for ``guided_x0``: of the captions, then as often of the empty prompt."""
    return teacher.cache_text(
        text.map(lambda c, u: torch.cat([c, u.to(c).expand_as(c)]), unconditional)
    )


def guided_x0(
    teacher: DualStream, x: Latents, sigma: Tensor, text: TextCache, scale: Pair[Tensor], view: View
) -> Latents:
    """The teacher's guided clean estimate; conditional and unconditional passes go as one batch (``cache_guided``)."""
    x0 = predict_x0(
        teacher, x.map(lambda a: torch.cat([a, a])), torch.cat([sigma, sigma]), text, view
    )

    def halves(a: Tensor, w: Tensor) -> Tensor:
        conditional, unguided = a.chunk(2)
        return guide(conditional, unguided, w)

    return x0.map(halves, scale)


def dmd_gradient(x: Latents, real: Latents, fake: Latents) -> Latents:
    """``(x0_critic - x0_teacher) / mean|x - x0_teacher|`` per modality and sample."""

    def gradient(a: Tensor, r: Tensor, f: Tensor) -> Tensor:
        scale = (a - r).abs().flatten(1).mean(1).clamp_min(1e-6)
        return (f - r) / scale.reshape(-1, *[1] * (a.ndim - 1))

    return x.map(gradient, real, fake)


def dmd_loss(x: Latents, gradient: Latents) -> Pair[Tensor]:
    """``1/2 mean |x - sg(x - g)|^2`` per modality: its gradient with respect to x is g / N."""
    return x.map(lambda a, g: 0.5 * (a - (a - g).detach()).square().mean(), gradient)


class DistributionMatching(StageModule):
    """The moves that Stages I and III share; each stage only says how its student makes a sample.

    One step = a student update, then ``critic_steps`` critic updates on that sample at fresh noise levels.

    Args:
        student: trained; its EMA is what is kept.
        teacher: frozen.
        critic: trained to follow the student's own distribution.
        view: attention of teacher and critic.
        unconditional: features of the empty prompt.
    """

    def __init__(
        self,
        student: DualStream,
        teacher: DualStream,
        critic: DualStream,
        config: DmdConfig,
        view: View,
        unconditional: TextFeatures,
        seed: int,
    ) -> None:
        super().__init__(student, config.optim, seed, config.muon_lr)
        # The frozen teacher stays out of checkpoints: it is an input, not state.
        self.frozen = [teacher.requires_grad_(False).eval()]
        self.critic, self.config, self.view, self.unconditional = (
            critic,
            config,
            view,
            unconditional,
        )

    def generate(
        self, student: DualStream, text: TextFeatures, generator: torch.Generator
    ) -> Latents:
        """A sample of the student with gradient through its exit step."""
        raise NotImplementedError

    def models(self) -> list[DualStream]:
        return [self.model, self.critic, *self.frozen]

    def place(self, device: torch.device) -> None:
        super().place(device)
        # The list hides the teacher from ``to``, as from checkpoints.
        self.frozen[0].to(device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        lr, muon_lr = self.config.critic_lr, self.config.critic_muon_lr
        muon = None if muon_lr is None else Weights(muon_lr, muon_lr)
        for_student = super().configure_optimizers()
        self.student_optimisers = len(for_student)
        return [*for_student, *self.optimisers_of(self.critic, Weights(lr, lr), muon)]

    def training_step(
        self, step: int, data: Batch, optimisers: list[torch.optim.Optimizer], backward: Backward
    ) -> dict[str, Tensor]:
        for_student, for_critic = (
            optimisers[: self.student_optimisers],
            optimisers[self.student_optimisers :],
        )
        parts, samples = self.parts(data, step), []

        def of_student(part: Part) -> Pair[Tensor]:
            x = self.generate(self.model, part.data.text, part.generator("rollout"))
            samples.append(x.map(Tensor.detach))
            return dmd_loss(x, self.score(x, part.data.text, part.generator("score")))

        student_losses = map(of_student, parts)
        losses, norms = self.update(
            for_student, backward, self.model, student_losses, self.config.loss, step
        )
        self.ema.update(self.model, step)
        generators = [part.generator("critic") for part in parts]
        for _ in range(self.config.critic_steps):
            of_critic = (
                self.critic_loss(x, p.data.text, g)
                for x, p, g in zip(samples, parts, generators, strict=True)
            )
            critic, _ = self.update(for_critic, backward, self.critic, of_critic, Weights(), step)
        return self.record(norms, {"loss": losses, "critic_loss": critic})

    @torch.no_grad()
    def score(self, x: Latents, text: TextFeatures, generator: torch.Generator) -> Latents:
        """The DMD gradient of a sample at a random sigma and guidance."""
        sigma, noised, _ = self.noised(x, generator)
        low, high = self.config.guidance_low, self.config.guidance_high
        u = draw(torch.rand, (len(sigma),), generator, device=sigma.device)
        scale = Pair(
            *(
                getattr(low, m) + (getattr(high, m) - getattr(low, m)) * u
                for m in ("video", "audio")
            )
        )
        teacher = self.frozen[0]
        real = guided_x0(
            teacher,
            noised,
            sigma,
            cache_guided(teacher, text, self.unconditional),
            scale,
            self.view,
        )
        fake = predict_x0(self.critic, noised, sigma, self.critic.cache_text(text), self.view)
        return dmd_gradient(x, real, fake)

    def critic_loss(
        self, x: Latents, text: TextFeatures, generator: torch.Generator
    ) -> Pair[Tensor]:
        """Flow matching of the critic on the student's sample."""
        sigma, noised, noise = self.noised(x, generator)
        v = self.critic(noised, sigma, self.critic.cache_text(text), self.view)
        return mean_square(v.map(lambda p, a, n: p - velocity(a, n), x, noise))

    def noised(self, x: Latents, generator: torch.Generator) -> tuple[Tensor, Latents, Latents]:
        """A random sigma per sample, shared by the streams, the sample noised to it, and the noise."""
        s = self.config.sigma
        sigma = sample_sigma(x.video.shape[0], s.low, s.high, s.shift, generator)
        noise = noise_like(x, generator)
        return sigma, x.map(lambda a, n: add_noise(a, n, sigma), noise), noise
