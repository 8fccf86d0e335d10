"""Stage II: block-causal ODE regression with sinks (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omniforcing.core.latents import Batch, broadcast
from omniforcing.core.layout import BlockTable, Counts
from omniforcing.core.pair import Pair
from omniforcing.distill.config import CausalOdeConfig
from omniforcing.model.attention import Masked
from omniforcing.model.config import StudentConfig
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream
from omniforcing.training.stages import (
    DEFAULT,
    Backward,
    MicroBatch,
    Optimisers,
    StageModule,
    TrainingOptions,
)


class CausalOde(StageModule):
    """Every block sits at its own random point of a trajectory; the student regresses its end.

    Both streams of a block share the point, and all indices come from the block table. The last
    point (sigma 0) is drawn too, so that the student sees clean context, but carries no loss.

    Args:
        model: the student, with its sinks.
        config: optimiser, target and loss weights.
        sigmas: the student's sigmas; trajectories hold a state for each, and the end.
        table: the block table.
        view: block-causal attention over the training clip.
        seed: the run's seed.
        options: micro-batches and sharding.
    """

    sigmas: Tensor

    def __init__(
        self,
        model: DualStream,
        config: CausalOdeConfig,
        sigmas: Sequence[float],
        table: BlockTable,
        view: Masked,
        seed: int,
        options: TrainingOptions = DEFAULT,
    ) -> None:
        super().__init__(model, config.optim, seed, config.muon_lr, options)
        self.config, self.table, self.view = config, table, view
        self.register_buffer("sigmas", torch.tensor([*sigmas, 0.0]), persistent=False)

    @classmethod
    def from_config(
        cls,
        config: CausalOdeConfig,
        student: StudentConfig,
        model: DualStream,
        counts: Counts,
        grid: tuple[int, int],
        seed: int,
        options: TrainingOptions = DEFAULT,
    ) -> CausalOde:
        """Build the training from its sections.

        Args:
            config: section of Stage II.
            student: section of the causal student.
            model: the student, with its sinks.
            counts: latents of a training clip.
            grid: spatial tokens of a video latent, (H, W).
            seed: of all randomness.
            options: micro-batches and sharding.
        """
        positions, horizon = positions_for(model, counts, grid, sinks=True), student.horizon(counts)
        view = Masked(positions, student.table, horizon + 1, student.window, horizon)
        return cls(model, config, student.sigmas, student.table, view, seed, options)

    def training_step(
        self, step: int, data: Batch, optimisers: Optimisers, backward: Backward
    ) -> dict[str, Tensor]:
        update = self.begin_update(optimisers, backward)
        for micro_batch in self.micro_batches(data, step):
            update.add(self.loss(micro_batch))
        norms = update.step(self.model, step)
        self.ema.update(self.model, step)
        return self.record(norms, {"loss": update.losses})

    def loss(self, micro_batch: MicroBatch) -> Pair[Tensor]:
        """Regression loss of one micro-batch, a scalar per modality.

        Losses average over noisy latents alone, and micro-batches hold different numbers of
        them. Each loss is weighted so that the mean over micro-batches and processes is the mean
        over the noisy latents of the whole batch.
        """
        data, generator = micro_batch.data, micro_batch.generator()
        states, rows = data.latents, generator.rows
        # Points of the whole batch [total, blocks]: this process must know how many latents of
        # the other rows are noisy.
        shape, device = (rows.total, self.view.count), generator.device
        points = torch.randint(len(self.sigmas), shape, generator=generator, device=device)
        point = rows.of(points)
        # One point per block, shared by both streams: in a stream too, a block's video and audio
        # are always at the same sigma.
        x = states.map(pick, self.spread(point))
        v = self.model(x, self.sigmas[point], self.model.cache_text(data.text), self.view)

        # Trajectories are stored from noise to data, so the last state is where each one ends.
        end = states.map(lambda s: s[:, -1])
        losses = v.map(self.regress, x, end, self.spread(self.sigmas[point]))

        # ``regress`` took the mean over this micro-batch's noisy latents; count them here, and
        # those of the whole batch, to undo it.
        noisy = self.spread(self.sigmas[points] > 0)

        def reweight(loss: Tensor, mask: Tensor) -> Tensor:
            per_row = mask.float().flatten(1).sum(1)
            share = rows.of(per_row).sum() * rows.total / (per_row.sum().clamp_min(1) * len(rows))
            return loss * share

        return losses.map(reweight, noisy)

    def spread(self, per_block: Tensor) -> Pair[Tensor]:
        """Repeat ``[B, blocks]`` to one value per latent of each stream, ``[B, T]``."""
        count = self.view.count
        return Pair(
            per_block[:, list(self.table.video_owner(count))],
            per_block[:, list(self.table.audio_owner(count))],
        )

    def regress(self, v: Tensor, x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """Mean square error against the velocity ``(x - x0) / sigma``, where sigma > 0.

        Args:
            v: predicted velocity ``[B, T, ...]``.
            x: states of the trajectories.
            x0: where the trajectories end.
            sigma: noise level of each latent, ``[B, T]``.
        """
        sigma = broadcast(sigma, v)
        noisy = (sigma > 0).expand_as(v)
        error = v - (x - x0) / sigma.clamp_min(1e-6)
        # Without a noisy latent the loss is 0, but still a function of the weights.
        return error[noisy].square().mean() if noisy.any() else (v * 0).sum()


def pick(states: Tensor, point: Tensor) -> Tensor:
    """Pick state ``point [B, T]`` of ``states [B, K, T, ...]`` per latent: ``[B, T, ...]``."""
    batch = torch.arange(states.shape[0], device=states.device)[:, None]
    return states[batch, point, torch.arange(states.shape[2], device=states.device)]
