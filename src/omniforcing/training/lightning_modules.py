"""Lightning adapters of the modules that are trained, which know nothing of Lightning themselves.

A stage of the distillation calls backward and steps its optimisers itself (Lightning's manual
optimisation). For a part of the codec Lightning does both, and steps the learning-rate schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from omniforcing.core import distributed


# Protocols, not the classes: with imports, dvc.yaml would make the codec depend on the methods.
@runtime_checkable
class Stage(Protocol):
    """What the loop calls of ``distill.common.StageModule``."""

    def shard(self, device: torch.device) -> None: ...

    def place(self, device: torch.device) -> None: ...

    def configure_optimizers(self) -> list[Optimizer]: ...

    def training_step(
        self, step: int, data: Any, optimisers: list[Optimizer], backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]: ...


@runtime_checkable
class Part(Protocol):
    """What the loop calls of ``codec.training.Part``."""

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]: ...

    def training_step(self, step: int, batch: Any) -> tuple[Tensor, dict[str, Tensor]]: ...

    def clip(self) -> Tensor: ...


def adapt(module: Stage | Part) -> L.LightningModule:
    """Wrap a module for Lightning's Trainer; batches arrive as ``(step, batch)``.

    Raises:
        TypeError: if it is neither a stage nor a part of the codec.
    """
    if isinstance(module, Stage):
        return StageAdapter(module)
    if isinstance(module, Part):
        return PartAdapter(module)
    raise TypeError(f"{type(module).__name__} is neither a StageModule nor a Part of the codec")


class StageAdapter(L.LightningModule):
    """Manual optimisation with Lightning's optimisers and backward; the bar shows logged values."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stage = stage

    def configure_model(self) -> None:
        """Shard and place the models before Lightning asks for optimisers of their parameters."""
        device = self.trainer.strategy.root_device
        self.stage.shard(device)
        self.stage.place(device)

    def configure_optimizers(self) -> list[Optimizer]:
        return self.stage.configure_optimizers()

    def training_step(self, batch: tuple[int, Any], _index: int) -> None:
        step, data = batch
        found = self.optimizers()
        optimisers = found if isinstance(found, list) else [found]
        logged = self.stage.training_step(step, data, optimisers, self.manual_backward)
        self.log_dict(logged, prog_bar=True, batch_size=1, sync_dist=distributed.size() > 1)


class PartAdapter(L.LightningModule):
    """Automatic optimisation; the part clips its gradients, and their norm is logged."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def configure_optimizers(self) -> Any:
        optimiser, schedule = self.part.configure_optimizers()
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: tuple[int, Any], _index: int) -> Tensor:
        step, data = batch
        loss, logged = self.part.training_step(step, data)
        self.log_dict(logged)
        return loss

    def on_before_optimizer_step(self, _optimiser: Optimizer) -> None:
        self.log("gradient", self.part.clip())
