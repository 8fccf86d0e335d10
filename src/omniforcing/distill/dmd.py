"""Distribution matching distillation (Yin et al., DMD2; paper sections 3.2 and 3.4).

Teacher and critic give a sample of the student a gradient; the critic learns the student's
distribution by flow matching. Video and audio are treated alike and share one sigma per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omniforcing.core.latents import Batch, Latents, TextFeatures, broadcast, noise_like
from omniforcing.core.pair import Pair
from omniforcing.core.schedule import add_noise, sample_sigma, velocity
from omniforcing.distill.config import DmdConfig
from omniforcing.distill.guidance import cache_guided, guided_x0, guided_x0_in_turn
from omniforcing.model.attention import View
from omniforcing.model.rollout import predict_x0
from omniforcing.model.transformer import DualStream
from omniforcing.training.config import Weights
from omniforcing.training.cuts import Cut
from omniforcing.training.frozen import hold_frozen
from omniforcing.training.stages import (
    DEFAULT,
    Backward,
    Optimisers,
    StageModule,
    TrainingOptions,
    mean_square,
)


def dmd_gradient(x: Latents, real: Latents, fake: Latents) -> Latents:
    """DMD gradient ``(x0_critic - x0_teacher) / mean|x - x0_teacher|`` per modality and sample.

    Args:
        x: the student's sample ``[B, T, ...]``.
        real: the teacher's clean estimate of the noised sample.
        fake: the critic's.
    """

    def gradient(a: Tensor, r: Tensor, f: Tensor) -> Tensor:
        scale = (a - r).abs().flatten(1).mean(1).clamp_min(1e-6)
        return (f - r) / broadcast(scale, a)

    return x.map(gradient, real, fake)


def dmd_loss(x: Latents, gradient: Latents) -> Pair[Tensor]:
    """Loss ``1/2 mean |x - sg(x - g)|^2`` per modality, whose gradient by x is ``g / N``."""
    return x.map(lambda a, g: 0.5 * (a - (a - g).detach()).square().mean(), gradient)


class DistributionMatching(StageModule):
    """DMD2's training step, which Stages I and III share; each says how its student makes a sample.

    One step is one student update, then ``critic_steps`` critic updates on the student's samples
    at fresh noise levels.

    Args:
        student: the model to train; its EMA is what is kept.
        teacher: scores samples as real; frozen.
        critic: scores samples as fake; trained to follow the student's own distribution.
        config: optimisers, noise levels and guidance.
        view: attention of teacher and critic.
        unconditional: features of the empty prompt, ``[1, L, D]`` per stream.
        seed: the run's seed.
        options: micro-batches and sharding.
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
        options: TrainingOptions = DEFAULT,
    ) -> None:
        super().__init__(student, config.optim, seed, config.muon_lr, options)
        # In a list, which nn.Module does not look into: the teacher is an input of the stage and
        # has no place in its checkpoints.
        self.frozen = [teacher.requires_grad_(False).eval()]
        hold_frozen(teacher, options.frozen)
        self.critic, self.config = critic, config
        self.view, self.unconditional = view, unconditional

    def generate(
        self, student: DualStream, text: TextFeatures, generator: torch.Generator
    ) -> tuple[Latents, list[Cut]]:
        """Make a sample ``[B, T, ...]`` of the student, with gradient through its exit step.

        Returns:
            The sample, and where its graph is cut, in the order in which its parts run backward.
        """
        raise NotImplementedError

    @property
    def teacher(self) -> DualStream:
        """The frozen teacher."""
        return self.frozen[0]

    def models(self) -> list[DualStream]:
        return [self.model, self.critic, *self.frozen]

    def place(self, device: torch.device) -> None:
        super().place(device)
        self.teacher.to(device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        lr, muon_lr = self.config.critic_lr, self.config.critic_muon_lr
        muon = None if muon_lr is None else Weights(muon_lr, muon_lr)
        for_student = super().configure_optimizers()
        self.student_optimisers = len(for_student)
        return [*for_student, *self.optimisers_of(self.critic, Weights(lr, lr), muon)]

    def training_step(
        self, step: int, data: Batch, optimisers: Optimisers, backward: Backward
    ) -> dict[str, Tensor]:
        for_student = optimisers[: self.student_optimisers]
        for_critic = optimisers[self.student_optimisers :]
        micro_batches = self.micro_batches(data, step)

        student = self.begin_update(for_student, backward)
        samples = []
        for micro_batch in micro_batches:
            text = micro_batch.data.text
            # Named generators: the rollout's draws do not shift those of score and critic.
            x, cuts = self.generate(self.model, text, micro_batch.generator("rollout"))
            gradient = self.score(x, text, micro_batch.generator("score"))
            student.add(dmd_loss(x, gradient), cuts)
            # The critic learns the same samples, whose graph the backward pass has freed.
            samples.append(x.map(Tensor.detach))
        norms = student.step(self.model, step)
        self.ema.update(self.model, step)

        # One generator per micro-batch for all critic updates: each goes on where the last ended.
        generators = [micro_batch.generator("critic") for micro_batch in micro_batches]
        for _ in range(self.config.critic_steps):
            critic = self.begin_update(for_critic, backward)
            for x, micro_batch, generator in zip(samples, micro_batches, generators, strict=True):
                critic.add(self.critic_loss(x, micro_batch.data.text, generator))
            critic.step(self.critic, step)

        return self.record(norms, {"loss": student.losses, "critic_loss": critic.losses})

    @torch.no_grad()
    def score(self, x: Latents, text: TextFeatures, generator: torch.Generator) -> Latents:
        """DMD gradient of a sample ``[B, T, ...]`` at a random sigma per row."""
        sigma, noised, _ = self.noised(x, generator)
        real = self.real_x0(noised, sigma, text)
        fake = predict_x0(self.critic, noised, sigma, self.critic.cache_text(text), self.view)
        return dmd_gradient(x, real, fake)

    def real_x0(self, noised: Latents, sigma: Tensor, text: TextFeatures) -> Latents:
        """The teacher's guided estimate of a noised sample ``[B, T, ...]``, sigma ``[B]``."""
        guidance = self.config.guidance
        scale = Pair(torch.full_like(sigma, guidance.video), torch.full_like(sigma, guidance.audio))
        teacher, view, none = self.teacher, self.view, self.unconditional
        if self.options.batched_guidance:
            both = cache_guided(teacher, text, none)
            return guided_x0(teacher, noised, sigma, both, scale, view)
        return guided_x0_in_turn(teacher, noised, sigma, text, none, scale, view)

    def critic_loss(
        self, x: Latents, text: TextFeatures, generator: torch.Generator
    ) -> Pair[Tensor]:
        """Flow-matching loss of the critic on a sample of the student, a scalar per modality."""
        sigma, noised, noise = self.noised(x, generator)
        v = self.critic(noised, sigma, self.critic.cache_text(text), self.view)
        return mean_square(v.map(lambda p, a, n: p - velocity(a, n), x, noise))

    def noised(self, x: Latents, generator: torch.Generator) -> tuple[Tensor, Latents, Latents]:
        """Noise a sample to a random sigma per row, shared by the streams.

        Returns:
            Sigma ``[B]``, the noised sample, and the noise.
        """
        s = self.config.sigma
        sigma = sample_sigma(x.video.shape[0], s.low, s.high, s.shift, generator)
        noise = noise_like(x, generator)
        return sigma, x.map(lambda a, n: add_noise(a, n, sigma), noise), noise
