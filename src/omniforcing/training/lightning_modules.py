"""Lightning adapters of the modules that are trained, which do not depend on Lightning themselves.

A transformer stage calls backward and steps its optimisers itself (Lightning's manual
optimisation). For a network of the codec Lightning does both, and steps its schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from omniforcing.core import distributed


# Protocols, not the classes: imports would make the codec's stages depend on the methods' code.
@runtime_checkable
class ManuallyOptimised(Protocol):
    """The methods of ``training.stages.StageModule`` that the loop calls."""

    def shard(self, device: torch.device) -> None: ...

    def place(self, device: torch.device) -> None: ...

    no_sync: Callable[[], AbstractContextManager[None]]

    def configure_optimizers(self) -> list[Optimizer]: ...

    def training_step(
        self, step: int, data: Any, optimisers: list[Optimizer], backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]: ...


@runtime_checkable
class AutomaticallyOptimised(Protocol):
    """The methods of ``training.codec.training.CodecTraining`` that the loop calls."""

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]: ...

    def training_step(self, step: int, batch: Any) -> tuple[Tensor, dict[str, Tensor]]: ...

    def clip(self) -> Tensor: ...


def adapt(module: nn.Module) -> L.LightningModule:
    """Wrap a module for Lightning's Trainer; batches arrive as ``(step, batch)``.

    Raises:
        TypeError: if it is neither a stage nor a network of the codec.
    """
    if isinstance(module, ManuallyOptimised):
        return StageAdapter(module)
    if isinstance(module, AutomaticallyOptimised):
        return CodecAdapter(module)
    raise TypeError(f"{type(module).__name__} is neither a StageModule nor a CodecTraining")


class StageAdapter(L.LightningModule):
    """Manual optimisation with Lightning's optimisers and backward; the bar shows logged values."""

    def __init__(self, stage: ManuallyOptimised) -> None:
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

    def on_fit_start(self) -> None:
        self.stage.no_sync = self._no_sync

    def on_fit_end(self) -> None:
        self.stage.no_sync = nullcontext

    def _no_sync(self) -> AbstractContextManager[None]:
        """Context in which DDP leaves gradients as they are; FSDP spreads them at once anyway."""
        model = self.trainer.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def training_step(self, batch: tuple[int, Any], _index: int) -> None:
        step, data = batch
        optimisers = self.optimizers()
        if not isinstance(optimisers, list):  # Lightning unwraps a list of one
            optimisers = [optimisers]
        logged = self.stage.training_step(step, data, optimisers, self.manual_backward)
        self.log_dict(logged, prog_bar=True, batch_size=1, sync_dist=distributed.world_size() > 1)


class CodecAdapter(L.LightningModule):
    """Automatic optimisation; the network clips its gradients, and their norm is logged."""

    def __init__(self, part: AutomaticallyOptimised) -> None:
        super().__init__()
        self.part = part  # checkpoints name their entries by this attribute

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
