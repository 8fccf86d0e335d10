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
CONSEQUENCE = 5.0  # seconds in which a process that failed first is seen to have ended


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
        if _first_fault([_start(call, refused) for call in calls]):
            if refused.is_file():
                raise OmniForcingError.from_json(read_json(refused))
            raise OmniForcingError(
                "pipeline.command-failed",
                f"{failure} (see above); run the stage again, it continues",
            )


def _first_fault(processes: Sequence[Process]) -> int:
    """Wait for all processes, or for one that fails; stop the others.

    Returns:
        The exit code of that one; 0 if none failed.
    """
    codes: SimpleQueue[int] = SimpleQueue()
    waiting = [Thread(target=lambda p: codes.put(p.wait()), args=(p,)) for p in processes]
    for thread in waiting:
        thread.start()
    try:
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
            preexec_fn=partial(die_with_parent, os.getpid()),
        )


def _run() -> None:
    """Run the call that standard input holds; leave its error for the process that waits."""
    # Ctrl-C reaches all processes of a terminal; the one that waits for these ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = pickle.load(sys.stdin.buffer)
    (function, arguments), refused = pickle.load(sys.stdin.buffer)
    import torch

    torch.set_num_threads(1)
    try:
        function(*arguments)
    except Exception as error:
        explained = explain(error)
        if explained is None:
            # It may be a consequence of the end of another process, after which this one is killed.
            time.sleep(CONSEQUENCE)
            raise
        write_json(refused, explained.as_json())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FAILED)  # an interpreter with torch takes seconds to end, and others wait for it


if __name__ == "__main__":
    sys.exit(run_command(_run))
