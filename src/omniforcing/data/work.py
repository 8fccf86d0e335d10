"""Shards of a stage as independent tasks, made in this process or by a pool of workers.

A runner builds each worker once, where it runs, with a function that can be pickled. A worker loads
what takes long to load (a codec, a model) and makes one shard after the other. A shard is complete
or absent (``tars.py``), so one whose worker dies is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# Called with the number of samples that were finished since the last call.
Done = Callable[[int], Any]
# Makes the shard of one task.
Worker = Callable[[Any, Done], None]
# Runs every task once with workers that it builds.
Runner = Callable[[Callable[[], Worker], Sequence[Any], Done], None]


def in_process(build: Callable[[], Worker], tasks: Sequence[Any], done: Done) -> None:
    """Run tasks one after the other in this process; builds no worker if there are none."""
    if tasks:
        worker = build()
        for task in tasks:
            worker(task, done)
