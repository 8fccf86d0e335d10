"""A Ray cluster of a benchmark's own on this machine, told from others by its token, which ends with the benchmark."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from omniforcing.errors import OmniForcingError

DRIVER = "omniforcing.ops.launch"
# Waits for the end of the benchmark, however that comes, and ends the cluster and all that it began.
REAPER = """
import sys
from benchmarks.local_cluster import kill, processes
sys.stdin.read()
kill(processes(sys.argv[1]))
"""


def processes(token: str, part: str = "") -> set[int]:
    """Processes of a cluster, its jobs and workers included, whose command line holds ``part``."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and int(process.name) != os.getpid():
                ours = f"RAY_AUTH_TOKEN={token}".encode() in (process / "environ").read_bytes()
                words = (process / "cmdline").read_bytes().decode(errors="replace")
                found |= {int(process.name)} if ours and part in words else set()
        except OSError:
            continue
    return found


def kill(found: Iterable[int]) -> None:
    """SIGKILL to each."""
    for process in found:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


class Cluster:
    """Nodes of one head at a free port; jobs at another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, secrets.token_hex(24)
        self.port, self.board = _free_port(), _free_port()
        self.environment = {
            **os.environ,
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"},
            **{"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"},
        }

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def jobs(self) -> str:
        return f"http://127.0.0.1:{self.board}"

    def start(self, *words: str) -> None:
        """Start a node: with ``--head`` the head, else one that joins it."""
        ray = str(Path(sys.executable).parent / "ray")
        command = [ray, "start", *words, "--disable-usage-stats", "--object-store-memory=100000000"]
        with (self.folder / "ray.log").open("a") as log:
            answer = subprocess.run(command, env=self.environment, stdout=log, stderr=log)
        if answer.returncode:
            raise OmniForcingError(f"`{' '.join(command)}` failed, see {log.name}")

    def head(self, cpus: int) -> None:
        """Start the head, also again."""
        ports = (f"--port={self.port}", f"--dashboard-port={self.board}", f"--dashboard-agent-listen-port={_free_port()}")
        self.start("--head", *ports, f"--num-cpus={cpus}", f"--temp-dir={self.folder / 'r'}")

    def processes(self, part: str = "") -> set[int]:
        """Those of the cluster whose command line holds ``part``; not the stage that trains on it."""
        return processes(self.token, part) - processes(self.token, "pipelines/")

    def stop(self) -> None:
        """End all nodes; a training's driver sees that for itself."""
        kill(self.processes() - processes(self.token, DRIVER))


@contextmanager
def own_cluster() -> Iterator[Cluster]:
    """A cluster without nodes as yet, all of whose processes end with the body, or with us."""
    # Sockets below it must have short names.
    with tempfile.TemporaryDirectory(prefix="of", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        command = [sys.executable, "-c", REAPER, cluster.token]
        root = Path(__file__).parents[1]
        reaper = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield cluster
        finally:
            reaper.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
