"""Shards made on a Ray cluster: workers that hold a codec or a model, a task at a time, and a killed worker's task again.

The code that makes a shard is that of one process (``data/work.py``); here it is only decided which worker makes which. The
driver alone hands tasks out and takes a shard for done when it sees it whole, so none is lost and none is made twice.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omniforcing.core.console import explain
from omniforcing.core.errors import OmniForcingError
from omniforcing.data.work import Done, Runner, Worker, in_process
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.connect import check_nodes, check_room, connect
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.stage import Stage


@contextmanager
def shard_runner(stage: Stage) -> Iterator[Runner]:
    """What runs a stage's tasks meanwhile: this process, or the workers of the cluster that is named."""
    if stage.config.cluster.address is None:
        yield in_process
        return
    reads = [stage.data_root / folder for folder in stage.declaration.inputs]
    with Pool(stage.config.cluster, reads, stage.work, stage.config.trainer.threads) as pool:
        yield pool


def worker_device(config: Config) -> str:
    """Where a worker's codec or model computes: here as ``trainer.device``, on a cluster on the GPU that it is given."""
    if config.cluster.address is None:
        return config.trainer.device
    return "cuda" if config.cluster.gpus else "cpu"


class Pool:
    """A ``Runner`` of ``cluster.workers`` Ray actors; as a context it connects once, when there is something to run.

    Args:
        reads: files and folders that every node must see.
        work: where shards are written; every node must see it too.
        threads: torch threads of a worker; the same number gives the same bits as in process.
    """

    def __init__(self, cluster: ClusterConfig, reads: list[Path], work: Path, threads: int) -> None:
        self.cluster, self.reads, self.work, self.threads = cluster, reads, work, threads
        self._connected = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False

    def __call__(self, build: Callable[[], Worker], tasks: Sequence[Any], done: Done) -> None:
        """Run every task once.

        Raises:
            ClusterError: if the cluster cannot be reached, is too small, or its nodes do not fit ours.
            OmniForcingError: what a worker raised, or that a task killed its workers too often.
        """
        if not tasks:
            return
        if not self._connected:
            connect(self.cluster)
            self._connected = True
            check_room(self.cluster)
            check_nodes(self.cluster, self.reads, self.work)
        self._run(build, tasks, done)

    def _run(self, build: Callable[[], Worker], tasks: Sequence[Any], done: Done) -> None:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        waiting = deque((task, 0) for task in tasks)
        hold = ray.remote(num_cpus=self.cluster.cpus, num_gpus=self.cluster.gpus, max_restarts=0)(
            _Holder
        )
        free = [
            hold.remote(build, self.threads) for _ in range(min(self.cluster.workers, len(tasks)))
        ]
        under_way: dict[Any, tuple[Any, Any, int]] = {}
        while waiting or under_way:
            while waiting and free:
                worker, (task, deaths) = free.pop(), waiting.popleft()
                under_way[worker.make.remote(task)] = (worker, task, deaths)
            (finished, *_), _ = ray.wait(list(under_way))
            worker, task, deaths = under_way.pop(finished)
            try:
                done(ray.get(finished))
                free.append(worker)
            except RayTaskError as error:
                raise _said(error) from error
            except RayActorError as error:
                if deaths >= self.cluster.restarts:
                    raise OmniForcingError(
                        "cluster.workers-died",
                        f"a worker died {deaths + 1} times on one shard, and cluster.restarts is {self.cluster.restarts}; its "
                        f"memory may be too small: finished shards are kept, run the same command again",
                    ) from error
                print(
                    "a worker died; its shard is made again by another", file=sys.stderr, flush=True
                )
                waiting.appendleft((task, deaths + 1))
                free.append(hold.remote(build, self.threads))


class _Holder:
    """The actor: builds its worker at the first task, so that what goes wrong then is told as a task's error."""

    def __init__(self, build: Callable[[], Worker], threads: int) -> None:
        self.build, self.threads, self.worker = build, threads, None

    def make(self, task: Any) -> int:
        """Make a task's shard; returns the number of samples."""
        import torch

        torch.set_num_threads(self.threads)
        self.worker = self.worker or self.build()  # type: ignore[assignment]
        counts: list[int] = []
        self.worker(task, counts.append)  # type: ignore[misc]
        return sum(counts)


def _said(error: Any) -> Exception:
    """What a worker raised: its sentence if it is one for the user, else Ray's error with the worker's traceback."""
    return explain(error.cause) or error
