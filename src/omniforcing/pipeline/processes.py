"""Run independent calls in parallel, each in a process of its own with one torch thread.

On a CPU that is faster than one call after the other with several threads. Such a process runs this
module, with the call as its standard input.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from omniforcing.core.console import run_command
from omniforcing.core.environment import die_with_parent
from omniforcing.core.errors import OmniForcingError
from omniforcing.pipeline.forking import Forked, start_forked

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
    processes: list[Forked | subprocess.Popen[bytes]] = []
    codes: list[int] = []
    try:
        for call in calls:
            processes.append(_start(call))
        for process in processes:
            codes.append(process.wait())
    finally:
        # Stopped by a signal, this process frees the stage's lock: no child may go on writing.
        for process in processes[len(codes) :]:
            process.kill()
            process.wait()
    if any(codes):
        raise OmniForcingError(
            "pipeline.command-failed", f"{failure} (see above); run the stage again, it continues"
        )


def _start(call: Call) -> Forked | subprocess.Popen[bytes]:
    """Start a call in a process that has the libraries loaded, or in a new one."""
    with tempfile.TemporaryFile() as file:
        for content in (sys.path, call):
            pickle.dump(content, file)
        file.seek(0)
        forked = start_forked(__name__, file.fileno())
        # Not forked from here: the thread pools of torch do not survive that.
        return forked or subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=file,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )


def _run() -> None:
    """Run the call that standard input holds."""
    sys.path[:] = pickle.load(sys.stdin.buffer)
    function, arguments = pickle.load(sys.stdin.buffer)
    import torch

    torch.set_num_threads(1)
    function(*arguments)


if __name__ == "__main__":
    sys.exit(run_command(_run))
