"""This process among those that train together: its rank, and its rows of a batch and of every random draw.

A step's batch and randomness are those of one process; each process takes its rows of them. So the number of processes
changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from omniforcing.core.errors import OmniForcingError


def together() -> bool:
    """Whether there is a process group, be it of one."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Of this process, 0 without others."""
    return dist.get_rank() if together() else 0


def size() -> int:
    """Processes that train together, 1 without others."""
    return dist.get_world_size() if together() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if together():
        dist.barrier()


def everywhere(fine: bool) -> bool:
    """Whether ``fine`` holds in every process; all of them learn it."""
    if not together():
        return fine
    found: list[bool] = [True] * size()
    dist.all_gather_object(found, fine)
    return all(found)


@dataclass(frozen=True)
class Rows:
    """Rows ``first`` to ``last`` (exclusive) of ``total``."""

    first: int
    last: int
    total: int

    def __len__(self) -> int:
        return self.last - self.first

    def of(self, whole: Tensor) -> Tensor:
        """These rows of a tensor ``[total, ...]``."""
        return whole[self.first : self.last]

    def split(self, count: int) -> list[Rows]:
        """``count`` equal parts, in order."""
        part = len(self) // count
        return [
            Rows(first, first + part, self.total)
            for first in range(self.first, self.first + part * count, part)
        ]


def own_rows(total: int, parts: int = 1) -> Rows:
    """The rows of a batch of ``total`` that are this process's.

    Raises:
        OmniForcingError: if the batch does not come apart into ``parts`` equal micro-batches for each process.
    """
    if total % (size() * parts):
        raise OmniForcingError(
            "config.inconsistent",
            f"a batch of {total} does not divide among {size()} workers with {parts} micro-batches each; "
            f"change optim.batch, cluster.workers or trainer.accumulate",
        )
    return Rows(0, total, total).split(size())[rank()]


class RowGenerator(torch.Generator):
    """A generator whose draws are those of the whole batch, of which ``draw`` returns these rows."""

    rows: Rows


def draw(
    function: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    **options: Any,
) -> Tensor:
    """``function(shape)`` with this generator, batch first; of a ``RowGenerator`` its rows of what the whole batch draws."""
    if not isinstance(generator, RowGenerator):
        return function(shape, generator=generator, **options)
    return generator.rows.of(
        function((generator.rows.total, *shape[1:]), generator=generator, **options)
    )
