"""Measure what a training on a Ray cluster loses to each fault.

`python -m benchmarks.faults [FAULT ...] [--strategy fsdp]` trains Stage III of preset smoke on two
workers of a cluster that it starts on this machine. It kills a worker, a node, the command itself
or the head, or fills the disk. Columns:

    seconds       from the start of the cluster to the end of the training
    repeated      steps that were logged more than once
    losses apart  largest difference from the run without a fault; inf if steps are missing
    MLflow runs   of the stage

Needs the preset's outputs: `omniforcing run --preset smoke`. Works on a copy of the checkout. The
full disk is a small tmpfs, which needs root.
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

from benchmarks.local_cluster import LocalCluster, kill, own_cluster
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
class TrainingCommand:
    """The command that trains the stage, in a copy of the project."""

    root: Path
    cluster: LocalCluster
    strategy: Strategy
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command, as a user does, also again after a fault."""
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

    def wait_for(self, condition: Callable[[], Any], name: str) -> None:
        """Poll until a condition holds.

        Raises:
            OmniForcingError: if the command fails first, or ``DEADLINE`` passes.
        """
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > DEADLINE or (
                self.process and self.process.poll() not in (None, 0)
            ):
                raise OmniForcingError(
                    "benchmarks.timed-out", f"{name} did not appear in time; see {self.log}"
                )
            time.sleep(0.2)

    def checkpoint(self) -> Path | None:
        """Return the latest complete checkpoint, or None."""
        sharded = self.strategy is not Strategy.ddp
        for folder in self.work.glob("*/"):
            latest = checkpoints.latest(folder, sharded)
            if latest:
                return latest
        return None

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


def kill_a_worker(training: TrainingCommand) -> None:
    """Kill one of the two workers."""
    training.reach_the_middle()
    kill({max(training.cluster.processes(WORKER))})


def lose_a_node(training: TrainingCommand) -> None:
    """Kill the raylet of the workers' node, and so the node; another node has room for them."""
    training.reach_the_middle()
    worker = max(training.cluster.processes(WORKER))
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent in training.cluster.processes(RAYLET)
    kill({parent})


def kill_the_driver(training: TrainingCommand) -> None:
    """Kill the command itself, then start it again."""
    training.reach_the_middle()
    assert training.process is not None
    training.process.kill()
    training.process.wait()
    training.start()


def restart_the_head(training: TrainingCommand) -> None:
    """Kill the whole cluster and start it at the same address; the command keeps running."""
    training.reach_the_middle()
    training.cluster.stop()
    time.sleep(3)
    training.cluster.head(2)


def fill_the_disk(training: TrainingCommand) -> None:
    """Fill the work folder's disk before a checkpoint; free it once the command has complained."""
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


FAULTS: dict[str, tuple[Callable[[TrainingCommand], None], list[int]]] = {
    # Name: the fault, and the CPUs of each node, the head's first.
    "worker": (kill_a_worker, [2]),
    "node": (lose_a_node, [0, 2, 2]),
    "driver": (kill_the_driver, [2]),
    "head": (restart_the_head, [2]),
    "disk": (fill_the_disk, [2]),
}


def copy_project(root: Path, folder: Path) -> None:
    """Copy code, config and smoke outputs into a folder.

    Raises:
        OmniForcingError: if preset smoke has no outputs.
    """
    for name in ("conf", "pipelines", "src"):
        shutil.copytree(root / name, folder / name)
    if not (root / "data" / "smoke" / "causal_ode").is_dir():
        raise OmniForcingError(
            "file.missing",
            f"{root / 'data' / 'smoke'} is not there; run `omniforcing run --preset smoke` first",
        )
    shutil.copytree(root / "data" / "smoke", folder / "data" / "smoke")


def curves(root: Path) -> list[dict[str, float]]:
    """Read the training curves that the stage wrote, a row per logged step."""
    with (root / "data" / "smoke" / f"{STAGE}.curves.csv").open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def difference(rows: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """Return the largest difference of two curves' losses; infinite if their steps differ."""
    if [row["step"] for row in rows] != [row["step"] for row in expected]:
        return float("inf")
    pairs = zip(rows, expected, strict=True)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in b if "loss" in name)


def repeated(root: Path) -> tuple[int, int]:
    """Count the stage's MLflow runs, and the steps that were logged more than once."""
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
    """Train once with a fault; return its row of the table and its curves.

    Args:
        root: of the checkout.
        name: of the fault; ``none`` for the run without one.
        strategy: of the workers.
        folder: new folder for the copy of the project.
        expected: curves of the run without a fault; None while that run is measured.
    """
    fault, sizes = FAULTS.get(name, (lambda _: None, [2]))
    copy_project(root, folder)
    began = time.monotonic()
    with own_cluster(PYTHONPATH=str(folder / "src")) as cluster:
        training = TrainingCommand(folder, cluster, strategy)
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
    rows = curves(folder)
    runs, again = repeated(folder)
    apart = difference(rows, expected or rows)
    text = f"{name:<12}{time.monotonic() - began:>9.0f}{again:>10}{apart:>14.1e}{runs:>13}"
    return text, rows


def _mount(folder: Path) -> bool:
    """Mount a small disk at ``folder``."""
    folder.mkdir(parents=True)
    answer = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", folder], capture_output=True, text=True
    )
    if answer.returncode:
        raise OmniForcingError(
            "benchmarks.no-small-disk",
            f"a small disk could not be mounted ({answer.stderr.strip()}); "
            "run this as root, or leave out disk",
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
            f"{STAGE}, {STEPS} steps on 2 workers ({arguments.strategy}), "
            f"a checkpoint every {EVERY} steps"
        )
        print(
            f"{'fault':<12}{'seconds':>9}{'repeated':>10}{'losses apart':>14}{'MLflow runs':>13}",
            flush=True,
        )
        expected = None
        for name in ("none", *chosen):
            folder = Path(tempfile.mkdtemp(prefix=f"omniforcing-faults-{name}-"))
            row, rows = measure(root, name, Strategy(arguments.strategy), folder, expected)
            expected = expected or rows
            print(row, flush=True)
            shutil.rmtree(folder)

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
