"""Training checkpoints that are complete or absent, also after a kill or on a full disk.

With whole models in each process (DDP or one process), a checkpoint is one file that replaces the
one before it. With sharded models (FSDP) it is a folder to which each worker writes its shards; any
number of workers can load it, each its part.
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
    """Return the name of the checkpoint after ``epoch`` epochs.

    Each folder of shards has its own name: unlike a file, a folder that is not empty cannot be
    replaced in one step.
    """
    return f"epoch-{epoch:06d}{SHARDS}" if isinstance(strategy, ModelParallelStrategy) else WHOLE


def latest(work: Path, sharded: bool) -> Path | None:
    """Find the checkpoint that was finished last.

    Args:
        work: work folder of the training.
        sharded: whether the training shards its models.

    Returns:
        The file or the folder of shards; None if there is none.

    Raises:
        OmniForcingError: if there is only one of the other kind.
    """
    whole, shards = work / WHOLE, sorted(work.glob(f"*{SHARDS}"))
    found, other = (shards, [whole]) if sharded else ([whole], shards)
    here = [path for path in found if path.exists()]
    if not here and (foreign := [path for path in other if path.exists()]):
        wanted = "ddp, or without a cluster" if sharded else "fsdp or hybrid"
        raise OmniForcingError(
            "training.other-strategy",
            f"{foreign[-1]} was written by a training that "
            f"{'did not shard' if sharded else 'sharded'} its models; "
            f"go on with cluster.strategy {wanted}, or remove it to start afresh",
        )
    return here[-1] if here else None


def temporary(path: Path) -> Path:
    """Return where all workers write a checkpoint until it is complete; ``latest`` ignores it."""
    return path.with_name(f".{path.name}.tmp")


def publish_shards(path: Path) -> None:
    """Rename a folder of shards that all workers have written, and remove older ones.

    Every process may call it; rank 0 does it. The older ones go last, so that there is a complete
    checkpoint at every moment.

    Args:
        path: final name; the shards lie at ``temporary(path)``.
    """
    if distributed.rank() == 0:
        publish(temporary(path), path)
        for older in path.parent.glob(f"*{SHARDS}"):
            if older != path:
                remove(older)


def unless_full(write: Callable[[], None], path: Path) -> bool:
    """Call ``write``; on a full disk, print a warning and remove the incomplete file.

    Args:
        write: writes a checkpoint or the curves.
        path: the file or folder that it makes.

    Returns:
        Whether it was written. False on a full disk: training goes on, and an older file stays.
    """
    try:
        write()
    except Exception as error:
        if not disk_full(error):
            raise
        if distributed.rank() == 0:
            remove(temporary(path))
            print(
                f"\nthe disk is full: {path} stays as it is, "
                f"training goes on and writes again at the next checkpoint; free some space",
                file=sys.stderr,
                flush=True,
            )
        return False
    return True


class Atomic(TorchCheckpointIO):
    """Lightning's writer of checkpoint files, which writes to a temporary file and renames it."""

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
