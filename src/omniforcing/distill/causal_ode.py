"""Stage II: block-causal ODE regression with sinks (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omniforcing.core.config import CausalOdeConfig, Config, OdeTarget
from omniforcing.core.latents import Batch, Pair
from omniforcing.core.layout import BlockTable
from omniforcing.model.attention import Masked
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream
from omniforcing.training.stages import Backward, Part, StageModule


class CausalOde(StageModule):
    """Every block sits at its own random point of a trajectory; the student regresses where that trajectory ends.

    Both streams of a block share the point, and all indices come from the block table. The last point (sigma 0) is drawn
    too, so that clean context is seen, but carries no loss.

    Args:
        sigmas: the student's sigmas; trajectories hold a state for each, and the end.
        view: block-causal attention over the training clip.
    """

    def __init__(
        self,
        model: DualStream,
        config: CausalOdeConfig,
        sigmas: Sequence[float],
        table: BlockTable,
        view: Masked,
        seed: int,
    ) -> None:
        super().__init__(model, config.optim, seed, config.muon_lr)
        self.config, self.table, self.view = config, table, view
        self.register_buffer("sigmas", torch.tensor([*sigmas, 0.0]), persistent=False)

    @classmethod
    def of(cls, config: Config, student: DualStream, grid: tuple[int, int]) -> CausalOde:
        """As a preset trains it; the student has its sinks."""
        positions = positions_for(student, config.latent_counts, grid, sinks=True)
        view = Masked(
            positions, config.table, config.horizon + 1, config.student.window, config.horizon
        )
        return cls(
            student, config.causal_ode, config.student.sigmas, config.table, view, config.seed
        )

    def training_step(
        self, step: int, data: Batch, optimisers: list[torch.optim.Optimizer], backward: Backward
    ) -> dict[str, Tensor]:
        losses = map(self.loss, self.parts(data, step))
        found, norms = self.update(optimisers, backward, self.model, losses, self.config.loss, step)
        self.ema.update(self.model, step)
        return self.record(norms, {"loss": found})

    def loss(self, part: Part) -> Pair[Tensor]:
        """The regression of one micro-batch, weighed so that the mean over all is that of the whole batch."""
        data, generator = part.data, part.generator()
        states, rows = data.latents, generator.rows
        shape, device = (rows.total, self.view.count), generator.device
        points = torch.randint(len(self.sigmas), shape, generator=generator, device=device)
        point = rows.of(points)
        x = states.map(pick, self.spread(point))
        v = self.model(x, self.sigmas[point], self.model.cache_text(data.text), self.view)
        sigma = self.spread(self.sigmas[point])
        losses = v.map(self.regress, x, states.map(lambda s: s[:, -1]), sigma)
        noisy = self.spread(self.sigmas[points] > 0).map(lambda n: n.float().flatten(1).sum(1))
        return losses.map(
            lambda loss, n: (
                loss * (rows.of(n).sum() * rows.total / (n.sum().clamp_min(1) * len(rows)))
            ),
            noisy,
        )

    def spread(self, per_block: Tensor) -> Pair[Tensor]:
        """``[B, blocks]`` to one value per latent of each stream."""
        count = self.view.count
        return Pair(
            per_block[:, list(self.table.video_owner(count))],
            per_block[:, list(self.table.audio_owner(count))],
        )

    def regress(self, v: Tensor, x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """Mean square error against the velocity ``(x - x0) / sigma`` that leads to the trajectory's end, where sigma > 0."""
        sigma = sigma.reshape(*sigma.shape, *[1] * (v.ndim - sigma.ndim))
        noisy = (sigma > 0).expand_as(v)
        error = v - (x - x0) / sigma.clamp_min(1e-6)
        if self.config.target is OdeTarget.x0:
            error = error * sigma
        return error[noisy].square().mean() if noisy.any() else (v * 0).sum()


def pick(states: Tensor, point: Tensor) -> Tensor:
    """State ``point [B, T]`` of ``states [B, K, T, ...]`` for every latent: ``[B, T, ...]``."""
    batch = torch.arange(states.shape[0], device=states.device)[:, None]
    return states[batch, point, torch.arange(states.shape[2], device=states.device)]
