"""Stage I: a bidirectional few-step student by DMD with backward simulation (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from omniforcing.core.config import Config
from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.layout import Counts
from omniforcing.distill.dmd import DistributionMatching
from omniforcing.distill.sampling import full_view
from omniforcing.model.rollout import few_step, gaussian
from omniforcing.model.transformer import DualStream


class BidirectionalDmd(DistributionMatching):
    """The student sees the whole clip and starts from noise; gradient flows through one random exit step.

    Args:
        sigmas: the student's denoising steps; 0 is not among them, so no update is spent where the loss is constant.
        counts: latents of the training clip.
        grid: spatial tokens of a video latent, (H, W).
    """

    def __init__(
        self,
        *models: DualStream,
        sigmas: Sequence[float],
        counts: Counts,
        grid: tuple[int, int],
        **rest: Any,
    ) -> None:
        super().__init__(*models, **rest)
        self.sigmas, self.counts, self.grid = tuple(sigmas), counts, grid

    @classmethod
    def of(
        cls,
        config: Config,
        models: Sequence[DualStream],
        unconditional: TextFeatures,
        grid: tuple[int, int],
    ) -> BidirectionalDmd:
        """As a preset trains it; ``models``: student, teacher, critic."""
        return cls(
            *models,
            config=config.bidirectional_dmd,
            view=full_view(models[1], config.latent_counts, grid),
            unconditional=unconditional,
            sigmas=config.student.sigmas,
            counts=config.latent_counts,
            grid=grid,
            seed=config.seed,
        )

    def generate(
        self, student: DualStream, text: TextFeatures, generator: torch.Generator
    ) -> Latents:
        """Backward simulation: noise to the clean estimate of a random exit step."""
        exit_step = int(
            torch.randint(len(self.sigmas), (), generator=generator, device=generator.device)
        )
        noise = gaussian(student, self.counts, self.grid, text.video.shape[0], generator)
        return few_step(
            student, noise, self.sigmas, student.cache_text(text), self.view, generator, exit_step
        )
