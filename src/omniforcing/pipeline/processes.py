"""Independent jobs beside each other, a process with one torch thread each: faster on a CPU than one by one with two."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from omniforcing.core.console import run_command
from omniforcing.core.environment import die_with_parent
from omniforcing.core.errors import OmniForcingError
from omniforcing.training.loop import set_threads

# A function of a module, and its arguments, all of which pickle.
Job = tuple[Callable[..., None], tuple[Any, ...]]


def run_side_by_side(jobs: Sequence[Job], failed: str) -> None:
    """Run all jobs at once and wait for all; their errors are printed as those of a command.

    Raises:
        OmniForcingError: saying ``failed``, if a job did not end well.
    """
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=_child, args=(os.getpid(), job, arguments)) for job, arguments in jobs
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        # Told to stop, we free the stage's lock: nobody may go on writing behind it.
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    if any(process.exitcode for process in processes):
        raise OmniForcingError(
            "pipeline.command-failed", f"{failed} (see above); run the stage again, it continues"
        )


def _child(parent: int, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    die_with_parent(parent)
    set_threads(1)
    sys.exit(run_command(lambda: job(*arguments)))
