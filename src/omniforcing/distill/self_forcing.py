"""Stage III: joint self-forcing DMD on the student's own rollout (paper section 3.4)."""

from __future__ import annotations

from typing import Any

import torch

from omniforcing.distill.dmd import DistributionMatching
from omniforcing.latents import Latents, TextFeatures, concatenate
from omniforcing.model.rollout import RolloutConfig, train_rollout
from omniforcing.model.transformer import DualStream


class SelfForcing(DistributionMatching):
    """The student generates all blocks from its own K/V cache; teacher and critic score the whole rollout.

    One random exit step per iteration serves all blocks. Gradient flows through each block's exit forward and through the
    text path; history is detached and the refresh forward has none.

    Args:
        rollout: block table, sigmas, window, horizon and context noise.
        blocks: blocks of the training clip.
    """

    def __init__(self, *models: DualStream, rollout: RolloutConfig, blocks: int, **rest: Any) -> None:
        super().__init__(*models, **rest)
        self.rollout, self.blocks = rollout, blocks

    def generate(self, student: DualStream, text: TextFeatures, generator: torch.Generator) -> Latents:
        """A whole rollout, ``[B, T, ...]``."""
        exit_step = int(torch.randint(len(self.rollout.sigmas), (), generator=generator, device=generator.device))
        cache = student.cache_text(text)
        return concatenate(train_rollout(student, cache, self.rollout, text.video.shape[0], self.blocks, exit_step, generator))
