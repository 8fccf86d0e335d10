"""A Ray cluster of this test's own on this machine: a head with a token, its ports free ones, which ends when we do."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-alone-0123456789abcdef"
# Waits for the end of whoever started it, however that comes, and ends a head and all that it began.
REAPER = """
import os, shutil, sys
from contextlib import suppress
import psutil
from tests.ops.ray_cluster import session
head, folder = int(sys.argv[1]), sys.argv[2]
sys.stdin.read()
family = set(session(head))
if psutil.pid_exists(head):
    family |= {child.pid for child in psutil.Process(head).children(recursive=True)}
for process in family:
    with suppress(ProcessLookupError):
        os.kill(process, 9)
shutil.rmtree(folder, ignore_errors=True)
"""


@dataclass(frozen=True)
class LocalCluster:
    """Where a head listens, and what its nodes' processes descend from."""

    address: str
    jobs: str
    processes: tuple[int, ...]

    def workers(self, named: str) -> list[psutil.Process]:
        """Worker processes whose title contains ``named``."""
        found = [child for pid in self.processes for child in psutil.Process(pid).children(recursive=True)]
        return [process for process in found if named in " ".join(_title(process))]


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """What head, workers and drivers of a test's cluster need."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # A busy machine is no fault.
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "200",
        "RAY_worker_register_timeout_seconds": "200",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def session(head: int) -> list[int]:
    """The processes of a head's session: all of its cluster but the jobs."""
    found = []
    for process in psutil.pids():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getsid(process) == head and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextmanager
def local_cluster(cpus: int = 2, cwd: Path | None = None, **changed: str) -> Iterator[LocalCluster]:
    """Start a head with ``cpus`` and its dashboard; it, and nothing else, ends at the end, or when we are killed."""
    temp = tempfile.mkdtemp(prefix="of-", dir="/tmp")  # short: Ray's sockets lie below it
    port, board = free_port(), free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={cpus}"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={temp}", f"--dashboard-port={board}"),
        *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
        "--object-store-memory=100000000",
    ]
    with Path(temp, "start.log").open("w") as log:
        head = subprocess.Popen(command, env=environment() | changed, cwd=cwd, stdout=log, stderr=log, start_new_session=True)
    reaper = subprocess.Popen(
        [sys.executable, "-c", REAPER, str(head.pid), temp], env=environment(), stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        _wait(board, head, Path(temp, "start.log"))
        yield LocalCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{board}", (head.pid,))
    finally:
        reaper.communicate()
        head.wait()


@contextmanager
def cluster_of_ours() -> Iterator[LocalCluster]:
    """A local cluster that this process may drive: it has the cluster's environment meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        with local_cluster() as started:
            yield started


def _wait(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0 and "Ray runtime started" in log.read_text():
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())
