"""What a training on a Ray cluster loses to each fault: `python -m benchmarks.faults [fault ...] [--strategy fsdp]`.

Stage III of a preset (smoke) trains on two workers of a cluster that this command starts on this machine; then a worker or a
node is killed, the command itself, the head, or the disk fills up. Needs the preset's outputs: `omniforcing run
--preset smoke`. Nothing of the checkout is changed. A full disk is made on a small tmpfs, which needs root.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import Cluster, kill, own_cluster
from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError
from omniforcing.pipeline.cluster.config import Strategy
from omniforcing.training import checkpoints

STAGE, STEPS, EVERY = "self_forcing", 24, 4
SETTINGS = [
    f"{STAGE}.optim.steps={STEPS}",
    f"trainer.checkpoint_every={EVERY}",
    "trainer.log_every=1",
    "trainer.probes=0",
]
WORKER, RAYLET = "RayTrainWorker", "raylet/raylet"
DEADLINE = 420.0  # seconds for one training, fault included


@dataclass
class Training:
    """A stage being trained in a copy of the project."""

    root: Path
    cluster: Cluster
    strategy: Strategy
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The command that a user gives, and gives again."""
        named = [
            f"cluster.address={self.cluster.address}",
            "cluster.workers=2",
            f"cluster.strategy={self.strategy.value}",
        ]
        command = [
            sys.executable,
            *("-m", "omniforcing", "stage", STAGE, "--preset", "smoke"),
            "trainer.threads=1",
            *SETTINGS,
            *named,
        ]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=self.cluster.environment, stdout=log, stderr=log
            )

    @property
    def log(self) -> Path:
        return self.root / "training.log"

    @property
    def work(self) -> Path:
        return self.root / ".work" / "smoke" / STAGE

    def wait_for(self, what: Callable[[], Any], name: str) -> None:
        began = time.monotonic()
        while not what():
            if time.monotonic() - began > DEADLINE or (
                self.process and self.process.poll() not in (None, 0)
            ):
                raise OmniForcingError(
                    "benchmarks.timed-out", f"{name} did not appear in time; see {self.log}"
                )
            time.sleep(0.2)

    def checkpoint(self) -> Path | None:
        """The last that is whole."""
        sharded = self.strategy is not Strategy.ddp
        found = [checkpoints.latest(folder, sharded) for folder in self.work.glob("*/")]
        return next(filter(None, found), None)

    def reach_the_middle(self) -> None:
        """Wait for a checkpoint, and then for some of the steps after it."""
        self.wait_for(self.checkpoint, "a checkpoint")
        time.sleep(1.5)

    def finish(self) -> None:
        assert self.process is not None
        code = self.process.wait(DEADLINE)
        if code:
            raise OmniForcingError(
                "benchmarks.command-failed", f"the training ended with {code}; see {self.log}"
            )

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()


def kill_a_worker(training: Training) -> None:
    """SIGKILL to one of the two workers."""
    training.reach_the_middle()
    kill({max(training.cluster.processes(WORKER))})


def lose_a_node(training: Training) -> None:
    """The raylet of the node that has the workers is killed, with all that runs on it; another node has room for them."""
    training.reach_the_middle()
    worker = max(training.cluster.processes(WORKER))
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent in training.cluster.processes(RAYLET)
    kill({parent})


def kill_the_driver(training: Training) -> None:
    """SIGKILL to the command itself, which is then given again."""
    training.reach_the_middle()
    assert training.process is not None
    training.process.kill()
    training.process.wait()
    training.start()


def restart_the_head(training: Training) -> None:
    """All of the cluster is killed and started again at the same address; the command is left alone."""
    training.reach_the_middle()
    training.cluster.stop()
    time.sleep(3)
    training.cluster.head(2)


def fill_the_disk(training: Training) -> None:
    """The disk of the work folder is full at a checkpoint; space is made only afterwards."""
    training.wait_for(training.checkpoint, "a checkpoint")
    ballast = training.work / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(2**16))
                file.flush()
        except OSError:
            pass
    training.wait_for(
        lambda: "the disk is full" in training.log.read_text(errors="replace"), "the full disk"
    )
    ballast.unlink()


FAULTS: dict[str, tuple[Callable[[Training], None], list[int]]] = {
    # The fault, and the CPUs of each node.
    "worker": (kill_a_worker, [2]),
    "node": (lose_a_node, [0, 2, 2]),
    "driver": (kill_the_driver, [2]),
    "head": (restart_the_head, [2]),
    "disk": (fill_the_disk, [2]),
}


def copy_project(root: Path, folder: Path) -> None:
    """The project's code, config and smoke outputs in a folder of their own."""
    for name in ("conf", "pipelines", "src"):
        shutil.copytree(root / name, folder / name)
    if not (root / "data" / "smoke" / "causal_ode").is_dir():
        raise OmniForcingError(
            "file.missing",
            f"{root / 'data' / 'smoke'} is not there; run `omniforcing run --preset smoke` first",
        )
    shutil.copytree(root / "data" / "smoke", folder / "data" / "smoke")


def curves(root: Path) -> list[dict[str, float]]:
    """The table that the stage left."""
    with (root / "data" / "smoke" / f"{STAGE}.curves.csv").open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def difference(found: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """The largest between two tables' losses; infinite if a step is missing or there twice."""
    if [row["step"] for row in found] != [row["step"] for row in expected]:
        return float("inf")
    pairs = zip(found, expected, strict=True)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in b if "loss" in name)


def repeated(root: Path) -> tuple[int, int]:
    """MLflow runs of the stage, and steps that it logged more than once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("omniforcing")
    runs = client.search_runs([experiment.experiment_id])
    steps = [
        metric.step
        for run in runs
        for metric in client.get_metric_history(run.info.run_id, "loss_video")
    ]
    return len(runs), len(steps) - len(set(steps))


def measure(
    root: Path, name: str, strategy: Strategy, folder: Path, expected: list[dict[str, float]] | None
) -> tuple[str, list[dict[str, float]]]:
    """A row of the table, and the curves; without a fault the unbroken run."""
    fault, sizes = FAULTS.get(name, (lambda _: None, [2]))
    copy_project(root, folder)
    began = time.monotonic()
    with own_cluster(PYTHONPATH=str(folder / "src")) as cluster:
        training = Training(folder, cluster, strategy)
        mounted = name == "disk" and _mount(training.work)
        try:
            cluster.head(sizes[0])
            for cpus in sizes[1:]:
                cluster.start(f"--address={cluster.address}", f"--num-cpus={cpus}")
            training.start()
            fault(training)
            training.finish()
        finally:
            training.stop()
            if mounted:
                subprocess.run(["umount", "-l", training.work], check=False)
    found = curves(folder)
    runs, again = repeated(folder)
    apart = difference(found, expected or found)
    text = f"{name:<12}{time.monotonic() - began:>9.0f}{again:>10}{apart:>14.1e}{runs:>13}"
    return text, found


def _mount(folder: Path) -> bool:
    """Put a small disk at ``folder``."""
    folder.mkdir(parents=True)
    answer = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", folder], capture_output=True, text=True
    )
    if answer.returncode:
        raise OmniForcingError(
            "benchmarks.no-small-disk",
            f"a small disk could not be mounted ({answer.stderr.strip()}); run this as root, or leave out disk",
        )
    return True


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "faults",
        nargs="*",
        choices=[*FAULTS, []],
        help=f"which (default: all): {', '.join(FAULTS)}",
    )
    parser.add_argument(
        "--strategy", choices=["ddp", "fsdp"], default="ddp", help="of the workers (default: ddp)"
    )
    arguments = parser.parse_args()
    chosen = arguments.faults or list(FAULTS)

    def run() -> None:
        root = project_root()
        print(
            f"{STAGE}, {STEPS} steps on 2 workers ({arguments.strategy}), a checkpoint every {EVERY} steps"
        )
        print(
            f"{'fault':<12}{'seconds':>9}{'repeated':>10}{'losses apart':>14}{'MLflow runs':>13}",
            flush=True,
        )
        expected = None
        for name in ("none", *chosen):
            folder = Path(tempfile.mkdtemp(prefix=f"omniforcing-faults-{name}-"))
            row, found = measure(root, name, Strategy(arguments.strategy), folder, expected)
            expected = expected or found
            print(row, flush=True)
            shutil.rmtree(folder)

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
