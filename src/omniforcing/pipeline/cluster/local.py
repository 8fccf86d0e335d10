"""Processes of this machine's CPU that train together or share a stage's shards, without Ray.

Each has one torch thread: at the size of a model that a CPU trains, two processes are faster than
one with two threads. No number of them changes a result but for the order of sums (and, of
adapters with dropout, the masks).
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.data.work import Done, Worker, in_process
from omniforcing.pipeline.processes import run_in_processes
from omniforcing.training.config import TrainerConfig


def process_count(trainer: TrainerConfig, batch: int | None = None) -> int:
    """Number of processes that this machine works with.

    Args:
        trainer: the configuration of all stages.
        batch: clips per update of a training.

    Returns:
        ``trainer.processes``, but no more than there are cores for this process, and of a training
        as many as its micro-batches divide among; 1 on a GPU.
    """
    if trainer.processes == 1 or trainer.device != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    count = min(trainer.processes, cores)
    while batch is not None and count > 1 and batch % (count * trainer.accumulate):
        count -= 1
    return count


def train_together(function: Callable[[], None], count: int) -> None:
    """Call a function in each of several processes, which form one process group over gloo.

    Args:
        function: continues from the last checkpoint; pickled.
        count: number of processes.

    Raises:
        OmniForcingError: that the function raised in one of them, or if one was killed.
    """
    with tempfile.TemporaryDirectory(prefix="omniforcing-") as folder:
        meeting = Path(folder) / "group"
        calls = [(_train, (function, rank, count, meeting)) for rank in range(count)]
        run_in_processes(calls, "the training stopped before its end")


def _train(function: Callable[[], None], rank: int, count: int, meeting: Path) -> None:
    import torch.distributed as dist

    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    # Nobody outside this machine takes part; and not every machine has another interface.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    store = dist.FileStore(str(meeting), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    function()
    # Not after an error: the others would fail before this process has told its own.
    dist.destroy_process_group()


class LocalPool:
    """A ``Runner`` of several processes, each of which takes the next task when it has made one.

    Args:
        count: number of processes.
        failure: what an error says if a process was killed.
    """

    def __init__(self, count: int, failure: str = "not all shards were made") -> None:
        self.count, self.failure = count, failure

    def __call__(self, build: Callable[[], Worker], tasks: Sequence[Any], done: Done) -> None:
        """Run every task once, in any order.

        Args:
            build: makes a worker; called in each process, pickled.
            tasks: one per shard, pickled.
            done: called with numbers of finished samples, by another thread.

        Raises:
            OmniForcingError: that a worker raised, or if a process was killed.
        """
        count = min(self.count, len(tasks))
        if count < 2:
            if self.count > 1:
                import torch

                torch.set_num_threads(1)  # as in the processes that make the others
            in_process(build, tasks, done)
            return
        key = secrets.token_bytes(32)
        # Not a socket in the file system, whose path may be too long.
        with Listener(("127.0.0.1", 0), "AF_INET", backlog=count, authkey=key) as listener:
            desk = _Desk(listener, tasks, done)
            Thread(target=desk.open, args=(count,), daemon=True).start()
            calls = [(_work, (build, listener.address, key))] * count
            try:
                run_in_processes(calls, self.failure)
            except OmniForcingError:
                if desk.fault is not None:
                    raise desk.fault from None
                raise


class _Desk:
    """Hands tasks to the processes that ask for them.

    Args:
        listener: where they connect.
        tasks: the tasks, in the order in which they are handed out.
        done: called with numbers of finished samples.
    """

    def __init__(self, listener: Listener, tasks: Sequence[Any], done: Done) -> None:
        self.listener, self.waiting, self.done = listener, deque(tasks), done
        self.lock = Lock()
        self.fault: Exception | None = None  # of ``done``

    def open(self, count: int) -> None:
        """Serve ``count`` processes, each in a thread."""
        # The listener is closed when a process has failed.
        with suppress(EOFError, OSError, AuthenticationError):
            for _ in range(count):
                Thread(target=self._serve, args=(self.listener.accept(),), daemon=True).start()

    def _serve(self, process: Connection) -> None:
        with process, suppress(EOFError, OSError):  # the process was killed
            while True:
                with self.lock:
                    task = self.waiting.popleft() if self.waiting else None
                process.send(task)
                if task is None:
                    return
                while (samples := process.recv()) is not None:
                    with self.lock:
                        try:
                            self.done(samples)
                        except Exception as error:
                            self.fault = self.fault or error
                            return


def _work(build: Callable[[], Worker], address: tuple[str, int], key: bytes) -> None:
    """Make shards until there is no task left."""
    worker: Worker | None = None
    with Client(address, "AF_INET", authkey=key) as desk:
        while (task := desk.recv()) is not None:
            worker = worker or build()
            worker(task, desk.send)
            desk.send(None)
