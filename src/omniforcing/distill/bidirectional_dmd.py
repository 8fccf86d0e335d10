"""Stage I: a bidirectional few-step student by DMD with backward simulation (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.layout import Counts
from omniforcing.distill.config import DmdConfig
from omniforcing.distill.dmd import DistributionMatching
from omniforcing.distill.sampling import full_view
from omniforcing.model.rollout import few_step, gaussian
from omniforcing.model.transformer import DualStream
from omniforcing.training.cuts import Cut
from omniforcing.training.stages import DEFAULT, TrainingOptions


class BidirectionalDmd(DistributionMatching):
    """The student sees the whole clip and starts from noise; one random exit step has gradient.

    Args:
        student: the student.
        teacher: the frozen teacher.
        critic: the critic.
        sigmas: the student's denoising steps, without 0, where the loss would be constant.
        counts: latents of the training clip.
        grid: spatial tokens of a video latent, (H, W).
        rest: arguments of ``DistributionMatching``.
    """

    def __init__(
        self,
        student: DualStream,
        teacher: DualStream,
        critic: DualStream,
        *,
        sigmas: Sequence[float],
        counts: Counts,
        grid: tuple[int, int],
        **rest: Any,
    ) -> None:
        super().__init__(student, teacher, critic, **rest)
        self.sigmas, self.counts, self.grid = tuple(sigmas), counts, grid

    @classmethod
    def from_config(
        cls,
        config: DmdConfig,
        sigmas: Sequence[float],
        models: Sequence[DualStream],
        unconditional: TextFeatures,
        counts: Counts,
        grid: tuple[int, int],
        seed: int,
        options: TrainingOptions = DEFAULT,
    ) -> BidirectionalDmd:
        """Build the training from its section.

        Args:
            config: section of Stage I.
            sigmas: the student's denoising steps.
            models: student, teacher, critic.
            unconditional: features of the empty prompt.
            counts: latents of a training clip.
            grid: spatial tokens of a video latent, (H, W).
            seed: of all randomness.
            options: micro-batches and sharding.
        """
        return cls(
            *models,
            config=config,
            view=full_view(models[1], counts, grid),
            unconditional=unconditional,
            sigmas=sigmas,
            counts=counts,
            grid=grid,
            seed=seed,
            options=options,
        )

    def generate(
        self, student: DualStream, text: TextFeatures, generator: torch.Generator
    ) -> tuple[Latents, list[Cut]]:
        """Backward simulation: denoise from pure noise to the clean estimate of the exit step."""
        device = generator.device
        exit_step = int(torch.randint(len(self.sigmas), (), generator=generator, device=device))
        noise = gaussian(student, self.counts, self.grid, text.video.shape[0], generator)
        cached = student.cache_text(text)
        x = few_step(student, noise, self.sigmas, cached, self.view, generator, exit_step)
        return x, []
