"""Stage III: joint self-forcing DMD on the student's own rollout (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.distributed import draw
from omniforcing.core.latents import Latents, TextFeatures, TextRows, broadcast, concatenate
from omniforcing.core.layout import Counts
from omniforcing.distill.config import ScoreMask, SelfForcingConfig
from omniforcing.distill.dmd import DistributionMatching
from omniforcing.distill.sampling import full_view, rollout_config
from omniforcing.model.attention import Masked, View
from omniforcing.model.config import StudentConfig
from omniforcing.model.rollout import RolloutConfig, train_rollout
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream
from omniforcing.training.cuts import Cut
from omniforcing.training.stages import DEFAULT, TrainingOptions


class SelfForcing(DistributionMatching):
    """The student generates all blocks from its own K/V cache; the whole rollout is scored.

    One random exit step per training step serves all blocks. Gradient flows through each block's
    exit forward and through the text path; history is detached and the refresh forward has none.

    A share of the rollouts (``config.steered``) begins under another caption and switches to its
    own at a random block, as a stream does when its prompt changes (LongLive, Yang et al. 2025;
    the paper has no such rollouts). They are scored under their own caption, and blocks before
    the switch carry no gradient: the student learns to follow its text against its history.

    Args:
        student: the student, with its sinks.
        teacher: the frozen teacher.
        critic: the critic.
        rollout: block table, sigmas, window, horizon and context noise.
        blocks: blocks of the training clip.
        captions: captions of which the other ones are drawn. All that the data has may stand here,
            held-out ones included: no gradient reaches them.
        rest: arguments of ``DistributionMatching``; its config has the share of steered rollouts.
    """

    config: SelfForcingConfig

    def __init__(
        self,
        student: DualStream,
        teacher: DualStream,
        critic: DualStream,
        *,
        rollout: RolloutConfig,
        blocks: int,
        captions: TextRows,
        **rest: Any,
    ) -> None:
        super().__init__(student, teacher, critic, **rest)
        self.rollout, self.blocks, self.captions = rollout, blocks, captions

    @classmethod
    def from_config(
        cls,
        config: SelfForcingConfig,
        student: StudentConfig,
        models: Sequence[DualStream],
        unconditional: TextFeatures,
        captions: TextRows,
        counts: Counts,
        grid: tuple[int, int],
        seed: int,
        options: TrainingOptions = DEFAULT,
    ) -> SelfForcing:
        """Build the training from its sections.

        Args:
            config: section of Stage III.
            student: section of the causal student.
            models: the student, with its sinks, then teacher and critic, without.
            unconditional: features of the empty prompt.
            captions: captions of which steered rollouts draw the other caption.
            counts: latents of a training clip.
            grid: spatial tokens of a video latent, (H, W).
            seed: of all randomness.
            options: micro-batches and sharding.
        """
        horizon = student.horizon(counts)
        view: View = full_view(models[1], counts, grid)
        if config.scores is ScoreMask.causal:
            positions = positions_for(models[1], counts, grid, sinks=True)
            view = Masked(positions, student.table, horizon + 1, None, horizon)
        return cls(
            *models,
            config=config,
            view=view,
            unconditional=unconditional,
            rollout=rollout_config(student, counts, grid),
            blocks=horizon + 1,
            captions=captions,
            seed=seed,
            options=options,
        )

    def generate(
        self, student: DualStream, text: TextFeatures, generator: torch.Generator
    ) -> tuple[Latents, list[Cut]]:
        """Roll the student out over the whole clip, ``[B, T, ...]``.

        History is detached, so the blocks' graphs meet in the clip and in the text path alone.
        They are cut off from both: each block runs backward by itself, and no more than one block's
        activations and gradients of the weights in use live at a time.
        """
        batch, device = len(text.video), generator.device
        sigmas = len(self.rollout.sigmas)
        exit_step = int(torch.randint(sigmas, (), generator=generator, device=device))
        # With gradient and once per rollout: all blocks share the text path's graph.
        text_cut = Cut()
        own = student.cache_text(text).map(text_cut)
        if not self.config.steered:
            texts = self.blocks * [own]
            blocks = train_rollout(student, texts, self.rollout, batch, exit_step, generator)
            blocks, cuts = self.cut_apart(blocks, text_cut)
            return concatenate(blocks), cuts

        steered = draw(torch.rand, (batch,), generator, device=device) < self.config.steered
        # One switch for all rows: a rollout's forward has one prompt per row and block.
        switch = 1 + int(torch.randint(self.blocks - 1, (), generator=generator, device=device))
        former = student.cache_text(self.former_text(text, steered, generator)).map(text_cut)
        texts = switch * [former] + (self.blocks - switch) * [own]
        blocks = train_rollout(student, texts, self.rollout, batch, exit_step, generator)
        blocks, cuts = self.cut_apart(blocks, text_cut)
        # Teacher and critic score the clip under its own caption. A block from before the switch
        # followed another one, so its score would be wrong: it keeps its values and no gradient.
        for index in range(switch):
            blocks[index] = blocks[index].map(
                lambda x: torch.where(broadcast(steered, x), x.detach(), x)
            )
        return concatenate(blocks), cuts

    @staticmethod
    def cut_apart(blocks: list[Latents], text: Cut) -> tuple[list[Latents], list[Cut]]:
        """Cut every block off from what comes after it.

        Args:
            blocks: the blocks, whose prompts are cut off from the text path.
            text: the cut before the blocks.

        Returns:
            The blocks as leaves, and all cuts, the last block's first and the text path's last.
        """
        cuts = [Cut() for _ in blocks]
        leaves = [block.map(cut) for block, cut in zip(blocks, cuts, strict=True)]
        return leaves, [cut for cut in (*reversed(cuts), text) if cut]

    def former_text(
        self, text: TextFeatures, steered: Tensor, generator: torch.Generator
    ) -> TextFeatures:
        """Captions before the switch: a random other one where ``steered [B]``, else the own."""
        shape, device = (len(text.video),), generator.device
        place = draw(torch.rand, shape, generator, device=device) * len(self.captions)
        others = self.captions.rows(place.long())
        return text.map(
            lambda mine, theirs: torch.where(broadcast(steered, mine), theirs.to(mine), mine),
            others,
        )
