"""Make shards on a Ray cluster: one task at a time per worker; a dead worker's task is made again.

The code that makes a shard is that of a single process (``data/work.py``); this module decides only
which worker makes which shard. The driver alone hands out tasks, and a shard counts as done when
its task returns, so none is lost and none is counted twice.
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
from omniforcing.data.work import Done, Runner, Worker
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.connect import check_nodes, check_room, connect
from omniforcing.pipeline.cluster.local import LocalPool, process_count
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.stage import Stage


@contextmanager
def shard_runner(stage: Stage) -> Iterator[Runner]:
    """Yield the runner of a stage's tasks: processes of this machine, or of a named cluster.

    Args:
        stage: its input folders and its work folder must be visible to every node.
    """
    if stage.config.cluster.address is None:
        yield LocalPool(process_count(stage.config.trainer))
        return
    reads = [stage.data_root / folder for folder in stage.declaration.inputs]
    with Pool(stage.config.cluster, reads, stage.work, stage.config.trainer.threads) as pool:
        yield pool


def worker_device(config: Config) -> str:
    """Return the device of a worker's codec or model.

    Returns:
        ``trainer.device`` without a cluster; with one, the GPU that Ray reserves for the worker, or
        the CPU if ``cluster.gpus`` is 0.
    """
    if config.cluster.address is None:
        return config.trainer.device
    return "cuda" if config.cluster.gpus else "cpu"


class Pool:
    """A ``Runner`` of at most ``cluster.workers`` Ray actors.

    A context manager: it connects at the first call with tasks and disconnects at the end.

    Args:
        cluster: with an address.
        reads: files and folders that every node must see.
        work: folder of the shards; every node must see it too.
        threads: torch threads of a worker; with as many as in one process, the bits are the same.
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
        """Run every task once, in any order.

        Args:
            build: makes a worker, which then makes shards; called in each actor, pickled.
            tasks: one per shard, pickled.
            done: called with the number of samples of each finished shard.

        Raises:
            ClusterError: if the cluster cannot be reached, is too small, or a node is unfit.
            OmniForcingError: if a worker raised it, or one task's workers died too often.
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
        """Keep every worker busy; replace those that die, and run their tasks again first."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        # Deaths are counted per task: one that always exhausts a worker's memory must end the run,
        # while unrelated deaths on many shards need not. Ray restarts no actor by itself
        # (``max_restarts=0``), since it would lose the count.
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
                        f"a worker died {deaths + 1} times on one shard, "
                        f"and cluster.restarts is {self.cluster.restarts}; "
                        f"its memory may be too small: "
                        f"finished shards are kept, run the same command again",
                    ) from error
                print(
                    "a worker died; its shard is made again by another", file=sys.stderr, flush=True
                )
                waiting.appendleft((task, deaths + 1))
                free.append(hold.remote(build, self.threads))


class _Holder:
    """Actor that holds a worker.

    The worker is built at the first task: an error in an actor's constructor would look like a dead
    actor, but in a task it reaches the driver with its sentence.
    """

    def __init__(self, build: Callable[[], Worker], threads: int) -> None:
        self.build, self.threads, self.worker = build, threads, None

    def make(self, task: Any) -> int:
        """Make a task's shard and return its number of samples."""
        import torch

        torch.set_num_threads(self.threads)
        self.worker = self.worker or self.build()  # type: ignore[assignment]
        counts: list[int] = []
        self.worker(task, counts.append)  # type: ignore[misc]
        return sum(counts)


def _said(error: Any) -> Exception:
    """Return a worker's error if the user can mend it, else Ray's error with its traceback."""
    return explain(error.cause) or error
