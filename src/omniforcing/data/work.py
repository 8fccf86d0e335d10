"""A stage's shards as independent pieces of work: who makes one is the runner's business, what it holds is not.

A worker is built once, wherever it runs, from something that pickles, holds what is dear (a codec, a model), and makes one
shard after the other; a shard is whole or absent (``tars.py``), so one that was under way when its worker died is made again.
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
    """One worker, here, one task after the other; nothing is built when there is nothing to do."""
    if tasks:
        worker = build()
        for task in tasks:
            worker(task, done)
