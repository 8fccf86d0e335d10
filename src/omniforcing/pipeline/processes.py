"""Run independent calls in parallel, each in a process of its own with one torch thread.

On a CPU that is faster than one call after the other with several threads. Such a process runs this
module, with the call as its standard input.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import cloudpickle

from omniforcing.core.console import FAILED, explain, run_command
from omniforcing.core.environment import die_with_parent
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, write_json
from omniforcing.pipeline.forking import Forked, start_forked

Call = tuple[Callable[..., None], tuple[Any, ...]]
Process = Forked | subprocess.Popen[bytes]
CONSEQUENCE = 5.0  # seconds within which it is seen that another process failed first
KILLED = 60.0  # seconds within which the processes that are left are killed


def run_in_processes(calls: Sequence[Call], failure: str) -> None:
    """Run all calls at the same time and wait for them; the first that fails stops the others.

    Args:
        calls: functions with their arguments.
        failure: beginning of the error's sentence.

    Raises:
        OmniForcingError: the one that a call raised, or of a process that failed or was killed.
    """
    with tempfile.TemporaryDirectory(prefix="omniforcing-") as folder:
        refused = Path(folder) / "error.json"
        code = _first_fault(calls, refused)
        if refused.is_file():
            raise OmniForcingError.from_json(read_json(refused))
        if code < 0:
            name = signal.Signals(-code).name
            raise OmniForcingError(
                "pipeline.command-failed",
                f"{failure}: a process was ended by {name}, perhaps for want of memory; "
                "run the stage again, with fewer trainer.processes if they need too much",
            )
        if code:
            raise OmniForcingError(
                "pipeline.command-failed", f"{failure} (see above); run the stage again"
            )


def _first_fault(calls: Sequence[Call], refused: Path) -> int:
    """Start all calls and wait for them, or for one that fails; stop the others.

    Returns:
        The exit code of that one; 0 if none failed.
    """
    processes: list[Process] = []
    waiting: list[Thread] = []
    codes: SimpleQueue[int] = SimpleQueue()
    try:
        for call in calls:
            process = _start(call, refused)
            processes.append(process)
            waiting.append(Thread(target=lambda p: codes.put(p.wait()), args=(process,)))
            waiting[-1].start()
        for _ in processes:
            if code := codes.get():
                return code
        return 0
    finally:
        # Stopped by a signal, this process frees the stage's lock: no child may go on writing.
        for process in processes:
            process.kill()
        for thread in waiting:
            thread.join()


def _start(call: Call, refused: Path) -> Process:
    """Start a call in a process that has the libraries loaded, or in a new one."""
    with tempfile.TemporaryFile() as file:
        pickle.dump(sys.path, file)
        cloudpickle.dump((call, refused), file)
        file.seek(0)
        forked = start_forked(__name__, file.fileno())
        # Not forked from here: the thread pools of torch do not survive that.
        return forked or subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=file,
            preexec_fn=partial(_begin, os.getpid()),
        )


def _begin(parent: int) -> None:
    # Ctrl-C reaches all processes of a terminal; the one that waits for these ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)


def _run() -> None:
    """Run the call that standard input holds; leave its error for the process that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a forked one too
    sys.path[:] = pickle.load(sys.stdin.buffer)
    (function, arguments), refused = pickle.load(sys.stdin.buffer)
    import torch

    torch.set_num_threads(1)
    try:
        function(*arguments)
    except Exception as error:
        explained = explain(error)
        if explained is None:
            # One that was killed leaves a lost connection, of which the others need not tell.
            time.sleep(CONSEQUENCE)
        if _is_first(refused.with_name("first")):
            if explained is None:
                traceback.print_exc()
            else:
                write_json(refused, explained.as_json())
            sys.stdout.flush()
            sys.stderr.flush()
        else:
            time.sleep(KILLED)  # most likely a consequence of the first
        os._exit(FAILED)  # an interpreter with torch takes seconds to end, and others wait for it


def _is_first(claim: Path) -> bool:
    """Whether no other process has failed."""
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(run_command(_run))
