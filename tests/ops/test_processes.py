"""Jobs beside each other: all run, a failed one is told, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omniforcing.errors import OmniForcingError
from omniforcing.ops.processes import run_side_by_side


def leave(path: Path, text: str) -> None:
    path.write_text(text)


def refuse(sentence: str) -> None:
    raise OmniForcingError(sentence)


def test_all_jobs_run_and_a_failed_one_is_told(tmp_path: Path) -> None:
    jobs = [(leave, (tmp_path / name, name)) for name in "ab"]
    run_side_by_side(jobs, "never")
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(OmniForcingError, match=r"half of it is missing \(see above\); run the stage again"):
        run_side_by_side([(refuse, ("no",)), (leave, (tmp_path / "c", "c"))], "half of it is missing")
    assert (tmp_path / "c").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_a_child_whose_parent_died_before_it_was_ready_ends_itself(tmp_path: Path) -> None:
    """The parent is killed while its child still imports, before the child could ask for the death signal."""
    code = """
import os, sys, time
parent, mark = os.getpid(), sys.argv[1]
if os.fork() == 0:
    time.sleep(1)
    from omniforcing.ops.stage import die_with_parent
    die_with_parent(parent)
    open(mark, "w").close()
    os._exit(0)
time.sleep(60)
"""
    mark = tmp_path / "survived"
    parent = subprocess.Popen([sys.executable, "-c", code, str(mark)])
    time.sleep(0.5)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    time.sleep(3)
    assert not mark.exists()
