"""A function run by several processes that train together over gloo, as torchrun or Ray would start
them.
"""

import gc
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_group(function: Callable[..., None], size: int, *arguments: Any) -> None:
    """Call ``function(*arguments)`` in each of ``size`` processes of one process group.

    The processes are copies of one that has imported what the function needs, with the
    environment that this process had at the first call. An error of any is raised.
    """
    try:
        _imported().submit(_lead, function, size, arguments).result()
    except BaseException:  # a timeout too: the next group must not wait for this one
        _imported.cache_clear()
        raise


@cache
def _imported() -> ProcessPoolExecutor:
    """One process that imports once for all groups, and does nothing else: without threads of its
    own it can be copied.
    """
    return ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))


def _lead(function: Callable[..., None], size: int, arguments: tuple[Any, ...]) -> None:
    # Members need not go through all imported modules when they collect garbage.
    gc.collect()
    gc.freeze()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_member, (size, port, function, arguments), nprocs=size, start_method="fork")


def _member(
    rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
    }
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    try:
        function(*arguments)
    finally:
        torch.distributed.destroy_process_group()


def read_rows(path: Path) -> list[dict[str, float]]:
    """A table of curves as numbers."""
    import csv

    with path.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
