"""Jobs beside each other: all run, one that fails ends the others, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omniforcing.core.errors import OmniForcingError
from omniforcing.pipeline.processes import run_in_processes
from tests.support.pool_workers import die
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended


def leave(path: Path, text: str) -> None:
    path.write_text(text)


def refuse(sentence: str) -> None:
    raise OmniForcingError("data.no-clips", sentence)


def wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def test_all_jobs_run_and_the_error_of_one_ends_the_others(tmp_path: Path) -> None:
    jobs = [(leave, (tmp_path / name, name)) for name in "ab"]
    run_in_processes(jobs, "never")
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["a", "b"]
    with refuses("data.no-clips", "there are no clips"):
        run_in_processes(
            [(time.sleep, (600,)), (refuse, ("there are no clips",))], "half of it is missing"
        )
    with refuses("pipeline.command-failed", "half of it is missing"):
        run_in_processes([(time.sleep, (600,)), (die, ())], "half of it is missing")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_a_child_whose_parent_died_before_it_was_ready_ends_itself(tmp_path: Path) -> None:
    """The parent is killed while its child still imports, before the child could ask for the death
    signal.
    """
    code = """
import os, sys, time
parent, mark = os.getpid(), sys.argv[1]
if os.fork() == 0:
    open(mark + ".forked", "w").close()
    while os.getppid() == parent:
        time.sleep(0.02)
    from omniforcing.core.environment import die_with_parent
    die_with_parent(parent)
    open(mark, "w").close()
    os._exit(0)
time.sleep(60)
"""
    mark = tmp_path / "survived"
    parent = subprocess.Popen([sys.executable, "-c", code, str(mark)], stdout=subprocess.PIPE)
    wait_for(mark.with_name("survived.forked"))
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=60)  # ends when the child, which has the pipe too, has ended
    assert not mark.exists()


@pytest.mark.parametrize(("number", "code", "told"), [(15, 143, 0), (2, 130, 1)])
def test_jobs_end_with_a_parent_that_is_told_to_stop(
    number: int, code: int, told: int, tmp_path: Path
) -> None:
    """By a signal to it alone, or by Ctrl-C, which all processes of a terminal get."""
    program = f"""
import sys
from pathlib import Path
from tests.support.counting import count
from omniforcing.core.console import run_command
from omniforcing.pipeline.processes import run_in_processes
if __name__ == "__main__":
    calls = [(count, (Path({str(tmp_path)!r}, name),)) for name in "ab"]
    sys.exit(run_command(lambda: run_in_processes(calls, "stopped")))
"""
    script = tmp_path / "parent.py"
    script.write_text(program)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for name in "ab":
            wait_for(tmp_path / name)
    finally:
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)
        else:
            parent.send_signal(number)
        _, errors = parent.communicate(timeout=60)
    assert parent.returncode == code
    assert "Traceback" not in errors and errors.count("stopped; run") == told
    counted = [(tmp_path / name).read_text() for name in "ab"]
    time.sleep(0.5)
    assert [(tmp_path / name).read_text() for name in "ab"] == counted
