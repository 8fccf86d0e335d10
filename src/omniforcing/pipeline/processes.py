"""Run independent calls in parallel, each in a process of its own with one torch thread.

On a CPU that is faster than one call after the other with several threads.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from omniforcing.core.console import run_command
from omniforcing.core.environment import die_with_parent
from omniforcing.core.errors import OmniForcingError

# A function that can be imported, and arguments that can be pickled.
Call = tuple[Callable[..., None], tuple[Any, ...]]


def run_in_processes(calls: Sequence[Call], failure: str) -> None:
    """Run all calls at the same time and wait for them; each prints its own error.

    Args:
        calls: functions with their arguments.
        failure: beginning of the error's sentence.

    Raises:
        OmniForcingError: if a process fails or is killed.
    """
    # Not fork: the parent may have loaded torch, whose thread pools do not survive a fork.
    context = multiprocessing.get_context("spawn")
    parent = os.getpid()
    processes = [context.Process(target=_run_call, args=(parent, *call)) for call in calls]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        # Stopped by a signal, this process frees the stage's lock: no child may go on writing.
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    if any(process.exitcode for process in processes):
        raise OmniForcingError(
            "pipeline.command-failed", f"{failure} (see above); run the stage again, it continues"
        )


def _run_call(parent: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    die_with_parent(parent)
    torch.set_num_threads(1)
    sys.exit(run_command(lambda: function(*arguments)))
