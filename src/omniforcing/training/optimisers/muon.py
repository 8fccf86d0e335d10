"""Muon for sharded models too."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from omniforcing.training.compat import adjusted_rate, orthogonalise


class Muon(torch.optim.Muon):
    """Torch's Muon, which steps on sharded matrices as it would on whole ones.

    Newton-Schulz on a shard gives another matrix than the shard of the whole result. So each
    update is gathered, one after the other, and every worker computes the whole of it; momentum
    stays in shards. For 19B parameters that takes seconds per step. (Torch's own Muon runs on
    shards to rounding, but hangs on matrices with fewer rows than there are workers.)
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step on all matrices that have a gradient."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not any(isinstance(p, DTensor) for p in parameters):
            return super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_sharded(parameter, group)
        return None

    def _step_sharded(self, parameter: DTensor, group: dict[str, Any]) -> None:
        grad, state, momentum = parameter.grad, self.state[parameter], group["momentum"]
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        update = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        if group["nesterov"]:
            update = grad.lerp(update, momentum)
        whole = orthogonalise(update.full_tensor(), group)
        part = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        local, rate = parameter.to_local(), adjusted_rate(group, parameter.shape)
        local.mul_(1 - group["lr"] * group["weight_decay"]).add_(part.to_local(), alpha=-rate)
