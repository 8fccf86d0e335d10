"""Processes that train together: rank, and the local rows of a batch and of every random draw.

Batch and random numbers of a step are defined for a single process; with several, each takes its
own rows of them. The number of processes therefore changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from omniforcing.core.errors import OmniForcingError


def is_distributed() -> bool:
    """Whether a process group exists, even of one process."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process; 0 when not distributed."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes; 1 when not distributed."""
    return dist.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Wait until every process gets here."""
    if is_distributed():
        dist.barrier()


def all_true(fine: bool) -> bool:
    """Whether ``fine`` is true in every process; every process must call it."""
    if not is_distributed():
        return fine
    found: list[bool] = [True] * world_size()
    dist.all_gather_object(found, fine)
    return all(found)


@dataclass(frozen=True)
class Rows:
    """Rows of a batch.

    Attributes:
        first: first row.
        last: row after the last.
        total: rows of the whole batch.
    """

    first: int
    last: int
    total: int

    def __len__(self) -> int:
        return self.last - self.first

    def of(self, whole: Tensor) -> Tensor:
        """Take these rows of a tensor ``[total, ...]``."""
        return whole[self.first : self.last]

    def split(self, count: int) -> list[Rows]:
        """Split the rows into ``count`` equal parts, in order."""
        part = len(self) // count
        return [
            Rows(first, first + part, self.total)
            for first in range(self.first, self.first + part * count, part)
        ]


def local_rows(total: int, parts: int = 1) -> Rows:
    """Rows of a batch that belong to this process.

    Args:
        total: rows of the whole batch.
        parts: micro-batches per process, into which the local rows must divide.

    Raises:
        OmniForcingError: if the batch does not divide into equal micro-batches.
    """
    if total % (world_size() * parts):
        raise OmniForcingError(
            "config.inconsistent",
            f"a batch of {total} does not divide among {world_size()} processes with {parts} "
            "micro-batches each; change optim.batch, trainer.accumulate, and trainer.processes, "
            "or cluster.workers on a cluster",
        )
    return Rows(0, total, total).split(world_size())[rank()]


class RowGenerator(torch.Generator):
    """A generator that draws for the whole batch; ``draw`` returns its rows.

    Attributes:
        rows: rows to return.
    """

    rows: Rows


def draw(
    function: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    **options: Any,
) -> Tensor:
    """Draw random numbers; with a ``RowGenerator``, draw for the whole batch and take its rows.

    Args:
        function: such as ``torch.randn``.
        shape: shape of the result, batch first.
        generator: source of the numbers; None for torch's own.
        **options: further arguments of ``function``.
    """
    if not isinstance(generator, RowGenerator):
        return function(shape, generator=generator, **options)
    return generator.rows.of(
        function((generator.rows.total, *shape[1:]), generator=generator, **options)
    )


def check_device(device: str) -> None:
    """Refuse a device that torch cannot compute on here.

    Raises:
        OmniForcingError: naming the device, and what torch says of it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise OmniForcingError(
            "device.unusable", f"--device {device} does not work here: {said}; use another, or cpu"
        ) from error
