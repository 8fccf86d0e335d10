"""A Ray cluster on this machine for benchmarks and tests, which ends with its starter."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from omniforcing.core.errors import OmniForcingError

# Environment variable that marks all processes of a cluster: nodes pass it on to what they start.
MARK = "OWN_RAY_CLUSTER"
PATIENCE = 240.0  # seconds for a head to answer, on a busy machine
# Waits until the process that started the cluster ends, even by SIGKILL: its pipe closes.
REAPER = """
import sys
from benchmarks.local_cluster import end
sys.stdin.read()
end(sys.argv[1])
"""


def environment(token: str) -> dict[str, str]:
    """Return the environment of a cluster's head, workers and drivers.

    It is ours without variables that name another cluster, store or project.
    """
    foreign = ("RAY_", "MLFLOW_", "OMNIFORCING_")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"},
        **{
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DVC_NO_ANALYTICS": "1",
        },
        "OMP_NUM_THREADS": "1",
        # Nodes start slowly on a busy machine.
        **{"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "200", "RAY_worker_register_timeout_seconds": "200"},
        # Serve ends a proxy that has not started in these seconds, and starts another.
        **{
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "200",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "200",
        },
        # Workers would yield to every other process, so a busy machine would starve them.
        "RAY_worker_niceness": "0",
        # Stops Ray's agents from overwriting the environment, which carries the mark.
        "SPT_NOENV": "1",
    }


def processes(mark: str, part: str = "") -> set[int]:
    """Return the processes of a marked cluster whose command line holds ``part``."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if (
                process.name.isdigit()
                and f"{MARK}={mark}".encode() in (process / "environ").read_bytes()
            ):
                words = (process / "cmdline").read_bytes().decode(errors="replace")
                found |= {int(process.name)} if part in words else set()
        except OSError:
            continue
    return found


def kill(found: Iterable[int]) -> None:
    """Send SIGKILL to each process."""
    for process in found:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def end(mark: str) -> None:
    """Kill a cluster's processes until none is left: they start others meanwhile."""
    while found := processes(mark):
        kill(found)
        time.sleep(0.1)


class LocalCluster:
    """A head at a free port, which takes jobs at another, and its nodes; initially none runs.

    Args:
        folder: of Ray's files and log.
        variables: environment of nodes and drivers.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder, self.environment, self.mark = folder, dict(variables), secrets.token_hex(8)
        self.port, self.board = free_port(), free_port()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def jobs(self) -> str:
        return f"http://127.0.0.1:{self.board}"

    def head(self, cpus: int) -> None:
        """Start or restart the head; return when it takes jobs.

        Raises:
            OmniForcingError: if it does not within ``PATIENCE``.
        """
        ports = (
            f"--port={self.port}",
            f"--dashboard-port={self.board}",
            f"--ray-client-server-port={free_port()}",
        )
        self.start("--head", *ports, f"--num-cpus={cpus}", f"--temp-dir={self.folder / 'r'}")
        deadline = time.monotonic() + PATIENCE
        while not _listens(self.board):
            if time.monotonic() > deadline:
                raise OmniForcingError(
                    "benchmarks.timed-out",
                    f"the head does not take jobs after {PATIENCE:.0f} s: {self._log()}",
                )
            time.sleep(0.2)

    def start(self, *words: str) -> None:
        """Start a node: the head with ``--head``, else one that joins it."""
        ray = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        command = [*ray, *words, "--disable-usage-stats", "--object-store-memory=100000000"]
        with (self.folder / "ray.log").open("a") as log:
            answer = subprocess.run(
                command, env={**self.environment, MARK: self.mark}, stdout=log, stderr=log
            )
        if answer.returncode:
            raise OmniForcingError(
                "benchmarks.command-failed", f"`{' '.join(command)}` failed: {self._log()}"
            )

    def _log(self) -> str:
        return (self.folder / "ray.log").read_text(errors="replace")[-2000:]

    def processes(self, part: str = "") -> set[int]:
        """Return the cluster's processes whose command line holds ``part``."""
        return processes(self.mark, part)

    def stop(self) -> None:
        """End all nodes, and everything that runs on them."""
        end(self.mark)


@contextmanager
def own_cluster(token: str | None = None, **changed: str) -> Iterator[LocalCluster]:
    """Provide a cluster without nodes; end its nodes when the block ends.

    Args:
        token: of authentication; None: a random one.
        changed: variables that differ in the environment of its nodes and drivers.
    """
    # Sockets below it must have short names.
    with tempfile.TemporaryDirectory(
        prefix="of-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        cluster = LocalCluster(Path(folder), environment(token or secrets.token_hex(24)) | changed)
        command, root = [sys.executable, "-c", REAPER, cluster.mark], Path(__file__).parents[1]
        reaper = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield cluster
        finally:
            reaper.communicate()
            assert reaper.returncode == 0


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
