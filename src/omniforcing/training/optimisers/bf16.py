"""States in half the bytes: AdamW's moments and averaged weights in bf16.

Moments and averages move by less than a step of bf16 from one update to the next: rounded to the
nearest they would stand still, so they are rounded at random, to either neighbour, such that the
mean is right. The random numbers follow from the update's number alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omniforcing.core.random import step_generator
from omniforcing.training.sharding import own_part


def store(target: Tensor, value: Tensor, generator: torch.Generator) -> None:
    """Write fp32 values ``[...]`` to a bf16 tensor, rounded at random to either neighbour."""
    # bf16 is the upper half of fp32: a random lower half, added, carries over as often as it must.
    noise = torch.empty(value.shape, dtype=torch.int32, device=value.device)
    noise.random_(0, 1 << 16, generator=generator)
    bits = value.contiguous().view(torch.int32).add_(noise)
    target.copy_(bits.bitwise_and_(-(1 << 16)).view(torch.float32))


class AdamW(torch.optim.AdamW):
    """Torch's AdamW with both moments in bf16."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        """Step on all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)
        return None

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.tensor(0.0)
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            # Loading a checkpoint gives moments the parameters' precision.
            state[name] = state[name].to(torch.bfloat16)
        state["step"] += 1
        step, device = int(state["step"]), own_part(parameter).device
        generator = step_generator(0, step, "moments", device)

        grad = own_part(parameter.grad).float()
        mean = own_part(state["exp_avg"]).float().lerp_(grad, 1 - first)
        square = own_part(state["exp_avg_sq"]).float().mul_(second)
        square.addcmul_(grad, grad, value=1 - second)
        weight = own_part(parameter)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        weight.addcdiv_(mean, denominator, value=-group["lr"] / (1 - first**step))
        store(own_part(state["exp_avg"]), mean, generator)
        store(own_part(state["exp_avg_sq"]), square, generator)
