"""Lightning in an existing process group, made by Ray Train, torchrun or a test."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from omniforcing.core import distributed
from omniforcing.core.files import remove
from omniforcing.training.checkpoints import publish_shards, temporary, unless_full


class _Group(LightningEnvironment):
    """Takes ranks from the process group."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return int(os.environ.get("LOCAL_RANK", "0"))

    def node_rank(self) -> int:
        return int(os.environ.get("NODE_RANK", "0"))

    def teardown(self) -> None: ...


class _Placed:
    """A strategy whose process computes on one given device."""

    parallel_devices: list[torch.device] | None

    @property
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        device = self.parallel_devices[0]
        return (
            torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
        )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": distributed.world_size(), "rank": distributed.rank()}


class Replicated(_Placed, DDPStrategy):
    """Data parallelism: every process holds whole models, gradients are averaged.

    A backward pass reaches either the student or the critic, so unused parameters are expected.
    """

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True)


class Sharded(_Placed, ModelParallelStrategy):
    """Fully sharded data parallelism; each process writes its shards into the checkpoint folder."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size=distributed.world_size(), tensor_parallel_size=1)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        path = Path(filepath)
        if distributed.rank() == 0:
            remove(temporary(path))
        distributed.barrier()
        save = partial(super().save_checkpoint, checkpoint, temporary(path), storage_options)
        if distributed.all_true(unless_full(save, path)):
            publish_shards(path)
        elif distributed.rank() == 0:
            remove(temporary(path))
        distributed.barrier()


def strategy(sharded: bool) -> Strategy | str:
    """Lightning's strategy for this process; its default one without a process group."""
    if not distributed.is_distributed():
        return "auto"
    return Sharded() if sharded else Replicated()


def environment() -> list[LightningEnvironment]:
    """Plugins that tell Lightning its rank; none without a process group."""
    return [_Group()] if distributed.is_distributed() else []
