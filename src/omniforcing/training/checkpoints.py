"""Training checkpoints that are whole or absent: one file of a training that each process holds whole, a folder of shards else.

A folder of shards is loaded by any number of workers, each of which reads its part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from omniforcing.core import distributed
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import disk_full, new_file, publish, remove

WHOLE = "last.ckpt"
SHARDS = ".shards"


def name(strategy: Strategy, epoch: int) -> str:
    """Of the checkpoint after so many epochs. A full folder cannot be replaced at once, so each of them has its own name."""
    return f"epoch-{epoch:06d}{SHARDS}" if isinstance(strategy, ModelParallelStrategy) else WHOLE


def latest(work: Path, sharded: bool) -> Path | None:
    """The checkpoint that was finished last.

    Raises:
        OmniForcingError: if it was written by workers of the other kind.
    """
    whole, shards = work / WHOLE, sorted(work.glob(f"*{SHARDS}"))
    found, other = (shards, [whole]) if sharded else ([whole], shards)
    here = [path for path in found if path.exists()]
    if not here and (foreign := [path for path in other if path.exists()]):
        wanted = "ddp, or without a cluster" if sharded else "fsdp or hybrid"
        raise OmniForcingError(
            "training.other-strategy",
            f"{foreign[-1]} was written by a training that {'did not shard' if sharded else 'sharded'} its models; go on with "
            f"cluster.strategy {wanted}, or remove it to start afresh",
        )
    return here[-1] if here else None


def temporary(path: Path) -> Path:
    """Where all workers write a checkpoint before it is whole; never found by ``latest``."""
    return path.with_name(f".{path.name}.tmp")


def publish_shards(path: Path) -> None:
    """Give a folder of shards that all workers wrote its name; those before it go."""
    if distributed.rank() == 0:
        publish(temporary(path), path)
        for older in path.parent.glob(f"*{SHARDS}"):
            if older != path:
                remove(older)


def unless_full(write: Callable[[], None], path: Path) -> bool:
    """Whether ``write`` could write; on a full disk the user is told, and what was written is removed."""
    try:
        write()
    except Exception as error:
        if not disk_full(error):
            raise
        if distributed.rank() == 0:
            remove(temporary(path))
            print(
                f"\nthe disk is full: {path} stays as it is, training goes on and writes again at the next checkpoint; "
                f"free some space",
                file=sys.stderr,
                flush=True,
            )
        return False
    return True


class Atomic(TorchCheckpointIO):
    """One file, written beside the old one and renamed."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any = None,  # noqa: ARG002
    ) -> None:
        def write() -> None:
            with new_file(Path(path)) as file:
                torch.save(checkpoint, file)

        unless_full(write, Path(path))
