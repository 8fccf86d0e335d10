"""Muon for models in shards too: of a shard alone Newton-Schulz gives another matrix than the shard of the whole one's."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz


class Muon(torch.optim.Muon):
    """Torch's Muon, which of sharded matrices gathers one update after the other, and steps as it would without shards.

    Momentum stays in shards. Every worker makes the whole of each update: for 19B parameters seconds per step, which is a
    price to know before choosing Muon there. (Torch's own runs on shards to rounding, but not of matrices with fewer rows
    than there are workers, where some of them wait for ever.)
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all matrices that have a gradient."""
        if not any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_sharded(parameter, group)
        return None

    def _step_sharded(self, parameter: DTensor, group: dict[str, Any]) -> None:
        grad, state = parameter.grad, self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = (
            grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        ).full_tensor()
        update = _zeropower_via_newtonschulz(
            update, group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
        part = distribute_tensor(
            update, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().mul_(1 - group["lr"] * group["weight_decay"]).add_(
            part.to_local(), alpha=-rate
        )
