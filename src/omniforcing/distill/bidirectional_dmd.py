"""Stage I: a bidirectional few-step student by DMD with backward simulation (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from omniforcing.distill.dmd import DistributionMatching
from omniforcing.latents import Latents, TextFeatures
from omniforcing.layout import Counts
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
        self, *models: DualStream, sigmas: Sequence[float], counts: Counts, grid: tuple[int, int], **rest: Any
    ) -> None:
        super().__init__(*models, **rest)
        self.sigmas, self.counts, self.grid = tuple(sigmas), counts, grid

    def generate(self, student: DualStream, text: TextFeatures, generator: torch.Generator) -> Latents:
        """Backward simulation: noise to the clean estimate of a random exit step."""
        exit_step = int(torch.randint(len(self.sigmas), (), generator=generator, device=generator.device))
        noise = gaussian(student, self.counts, self.grid, text.video.shape[0], generator)
        return few_step(student, noise, self.sigmas, student.cache_text(text), self.view, generator, exit_step)
