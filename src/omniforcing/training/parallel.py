"""Run Lightning in a process group that Ray Train, torchrun or a test has made already."""

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
    """Tells Lightning the ranks of the existing process group, so that it makes none itself."""

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
    """Mixin of the strategies: a process computes on its current CUDA device, or on the CPU.

    Lightning would choose the GPU by local rank; Ray gives each worker a GPU, which is set before.
    """

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
    """Data parallelism (DDP): every process holds whole models, gradients are averaged.

    A backward pass reaches either the student or the critic, so DDP must accept parameters without
    a gradient.
    """

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True)


class Sharded(_Placed, ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP); each process writes its shards of a checkpoint."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size=distributed.world_size(), tensor_parallel_size=1)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint folder; on a full disk in any process, keep the previous one."""
        path = Path(filepath)
        # Every process must reach each barrier, whatever happens to its own disk; otherwise the
        # others would wait for it without end.
        if distributed.rank() == 0:
            remove(temporary(path))
        distributed.barrier()
        save = partial(super().save_checkpoint, checkpoint, temporary(path), storage_options)
        # A folder that lacks one process's shards is of no use: publish all or none.
        if distributed.all_true(unless_full(save, path)):
            publish_shards(path)
        elif distributed.rank() == 0:
            remove(temporary(path))
        distributed.barrier()


def strategy(sharded: bool) -> Strategy | str:
    """Return Lightning's strategy for this process.

    Args:
        sharded: whether the models are sharded over the process group.

    Returns:
        Lightning's default (``"auto"``) without a process group.
    """
    if not distributed.is_distributed():
        return "auto"
    return Sharded() if sharded else Replicated()


def environment() -> list[LightningEnvironment]:
    """Return the plugins that tell Lightning its rank; empty without a process group."""
    return [_Group()] if distributed.is_distributed() else []
