"""Stage III: joint self-forcing DMD on the student's own rollout (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.config import Config, ScoreMask, SelfForcingConfig
from omniforcing.core.distributed import draw
from omniforcing.core.latents import Latents, TextFeatures, concatenate
from omniforcing.distill.dmd import DistributionMatching
from omniforcing.distill.sampling import full_view, rollout_config
from omniforcing.model.attention import Masked, View
from omniforcing.model.rollout import RolloutConfig, train_rollout
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream


class SelfForcing(DistributionMatching):
    """The student generates all blocks from its own K/V cache; teacher and critic score the whole rollout.

    One random exit step per iteration serves all blocks. Gradient flows through each block's exit forward and through the
    text path; history is detached and the refresh forward has none.

    A share of the rollouts (``steered``) begins under another caption and switches to its own at a random block, as a stream
    does that is steered (LongLive, Yang et al. 2025; the paper has no such rollouts). They too are scored with their own
    caption, but blocks before the switch carry no gradient: the student learns to follow its text against its history.

    Args:
        config: with the share of rollouts that switch.
        rollout: block table, sigmas, window, horizon and context noise.
        blocks: blocks of the training clip.
        captions: features ``[N, L, D]`` of which the other captions are drawn: all that the data has, the empty one and those
            of held-out clips too, for no gradient reaches them.
    """

    config: SelfForcingConfig

    def __init__(
        self,
        *models: DualStream,
        rollout: RolloutConfig,
        blocks: int,
        captions: TextFeatures,
        **rest: Any,
    ) -> None:
        super().__init__(*models, **rest)
        self.rollout, self.blocks, self.captions = rollout, blocks, captions

    @classmethod
    def of(
        cls,
        config: Config,
        models: Sequence[DualStream],
        unconditional: TextFeatures,
        captions: TextFeatures,
        grid: tuple[int, int],
    ) -> SelfForcing:
        """As a preset trains it; ``models``: the student, with its sinks, then teacher and critic, without."""
        view: View = full_view(models[1], config.latent_counts, grid)
        if config.self_forcing.scores is ScoreMask.causal:
            positions = positions_for(models[1], config.latent_counts, grid, sinks=True)
            view = Masked(positions, config.table, config.horizon + 1, None, config.horizon)
        return cls(
            *models,
            config=config.self_forcing,
            view=view,
            unconditional=unconditional,
            rollout=rollout_config(config, grid),
            blocks=config.horizon + 1,
            captions=captions,
            seed=config.seed,
        )

    def generate(
        self, student: DualStream, text: TextFeatures, generator: torch.Generator
    ) -> Latents:
        """A whole rollout, ``[B, T, ...]``."""
        batch, device = len(text.video), generator.device
        exit_step = int(
            torch.randint(len(self.rollout.sigmas), (), generator=generator, device=device)
        )
        own = student.cache_text(text)
        if not self.config.steered:
            return concatenate(
                train_rollout(
                    student, self.blocks * [own], self.rollout, batch, exit_step, generator
                )
            )
        steered = draw(torch.rand, (batch,), generator, device=device) < self.config.steered
        switch = 1 + int(torch.randint(self.blocks - 1, (), generator=generator, device=device))
        other = (
            draw(torch.rand, (batch,), generator, device=device) * len(self.captions.video)
        ).long()
        others = self.captions.map(lambda f: f[other.to(f.device)])
        former = text.map(
            lambda mine, theirs: torch.where(_rows(steered, mine), theirs.to(mine), mine), others
        )
        texts = switch * [student.cache_text(former)] + (self.blocks - switch) * [own]
        blocks = train_rollout(student, texts, self.rollout, batch, exit_step, generator)
        before = [
            block.map(lambda x: torch.where(_rows(steered, x), x.detach(), x))
            for block in blocks[:switch]
        ]
        return concatenate(before + blocks[switch:])


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    """``[B]`` to be broadcast against ``like``."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))
