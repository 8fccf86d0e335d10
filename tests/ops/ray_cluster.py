"""A Ray cluster of this test's own on this machine: a head with a token, its ports free ones, stopped by its own process."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-alone-0123456789abcdef"


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
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


@contextmanager
def local_cluster(cpus: int = 2, cwd: Path | None = None, **changed: str) -> Iterator[LocalCluster]:
    """Start a head with ``cpus`` and its dashboard; stop it, and nothing else, at the end."""
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
    try:
        _wait(board, head, Path(temp, "start.log"))
        yield LocalCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{board}", (head.pid,))
    finally:
        children = psutil.Process(head.pid).children(recursive=True) if psutil.pid_exists(head.pid) else []
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            head.kill()
        for child in children:
            if child.is_running():
                child.kill()
        shutil.rmtree(temp, ignore_errors=True)


def _wait(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())
