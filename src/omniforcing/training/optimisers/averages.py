"""Averaged weights, which are the ones that a stage keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from omniforcing.core.random import step_generator
from omniforcing.training.optimisers.bf16 import store
from omniforcing.training.sharding import own_part

M = TypeVar("M", bound=nn.Module)


class Ema(nn.Module, Generic[M]):
    """Exponential moving average of a model's weights.

    The decay grows from 1/10 with the step, so that early averages do not stay at the start.

    Args:
        model: the model to follow; ``self.model`` starts as a frozen copy of it.
        decay: the largest decay.
        held: how the average is held: in ``fp32``, in ``bf16``, or in fp32 on the ``cpu``.
    """

    def __init__(self, model: M, decay: float, held: str = "fp32") -> None:
        super().__init__()
        self.model: M = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.held = decay, held
        if held == "bf16":
            self.model.to(torch.bfloat16)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Ema[M]:
        # What moves a module moves its parts, Lightning once more before it trains.
        return self if self.held == "cpu" else super()._apply(fn, recurse)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights of ``model`` after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        if self.held == "bf16":
            self._update_rounded(pairs, decay, step)
            return
        for mean, value in pairs:
            mean.lerp_(value if self.held == "fp32" else value.to(mean.device), 1 - decay)

    def _update_rounded(
        self, pairs: Iterable[tuple[Tensor, Tensor]], decay: float, step: int
    ) -> None:
        device = own_part(next(self.model.parameters())).device
        generator = step_generator(0, step, "averages", device)
        for mean, value in pairs:
            own = own_part(mean)
            store(own, own.float().lerp_(own_part(value), 1 - decay), generator)
