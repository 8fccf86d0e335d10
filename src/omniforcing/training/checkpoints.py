"""Training checkpoints that are whole or absent: one file of a training that each process holds whole, a folder of shards else.

A folder of shards is loaded by any number of workers, each of which reads its part.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from omniforcing.core import distributed
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import remove, sync

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
    """Where a checkpoint is written before it is whole; never found by ``latest``."""
    return path.with_name(f".{path.name}.tmp")


def publish(path: Path) -> None:
    """Give what was written at ``temporary(path)`` its name, once it is on the disk."""
    written = temporary(path)
    for item in [*written.rglob("*"), written]:
        sync(item)
    written.replace(path)
    sync(path.parent)


def publish_shards(path: Path) -> None:
    """Give a folder of shards that all workers wrote its name; those before it go."""
    if distributed.rank() == 0:
        publish(path)
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


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, one that it came from, or one of a worker's that it collects, says that a disk is full."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    collected = [failure[0] for failure in getattr(error, "failures", {}).values()]
    return any(map(disk_full, [error.__cause__, error.__context__, *collected]))


class Atomic(TorchCheckpointIO):
    """One file, written beside the old one and renamed."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        def write() -> None:
            super(Atomic, self).save_checkpoint(checkpoint, temporary(Path(path)), storage_options)
            publish(Path(path))

        unless_full(write, Path(path))
