"""Measure what Ray, MLflow and DVC take of a stage's time.

`python -m benchmarks.overhead [STAGE ...] [--preset pocket]` trains each stage twice by `dvc repro`
in a clone of this checkout: in process, and as a job on two workers of a cluster that it starts.
Columns split the seconds from command to end:

    training   the training loop, by the times that the run logged, without the logging
    MLflow     importing it, and logging again everything that the stage's run holds
    DVC        time of `dvc repro` outside the stage: its start, hashing inputs and outputs
    rest       everything else: imports, loading, publishing and, on the cluster, DVC and Ray
    not loop   share of the seconds outside the training loop

Needs the preset's outputs: `omniforcing run --preset pocket`. Measures what is committed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.checkout import clone_checkout
from benchmarks.local_cluster import LocalCluster, own_cluster
from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.environment import CLUSTER_VARIABLE
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, remove
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.declaration import dvc_target
from omniforcing.pipeline.generate import CODE

STAGES = ["causal_ode", "self_forcing"]
WORKERS = 2
PARTS = ["seconds", "training", "DVC", "MLflow", "rest"]
# Run in a process of its own that has imported what a stage imports: logs again everything that a
# run holds. Prints the seconds of the metrics and of the rest.
AGAIN = """
import json, sys, time
from pathlib import Path
import torch, diffusers, lightning
began = time.monotonic()
from omniforcing.pipeline import tracking
root, held = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
run = tracking.open_run(tracking.connect(root), "again", root / "run.json", {}, held["params"])
with tracking.closing(run):
    run.log_artifact(Path(held["artifacts"]))
    steps = time.monotonic()
    for step, values in held["metrics"]:
        run.log_metrics(values, step)
    steps = time.monotonic() - steps
print(steps, time.monotonic() - began - steps)
"""


def clone_of(root: Path, preset: str, folder: Path) -> Path:
    """Clone the checkout as it is committed, and copy the preset's outputs into the clone."""
    if not (root / "data" / preset).is_dir():
        raise OmniForcingError(
            "file.missing",
            f"{root / 'data' / preset} is not there; run `omniforcing run --preset {preset}` first",
        )
    if folder.exists():
        raise OmniForcingError(
            "file.exists", f"--keep {folder} is there already; name a new folder"
        )
    clone_checkout(root, folder)
    shutil.copytree(root / "data" / preset, folder / "data" / preset)
    return folder


def timed(command: list[str], clone: Path, variables: Mapping[str, str], log: Path) -> float:
    """Run a command of Python in the clone and return its seconds.

    Raises:
        OmniForcingError: if it fails.
    """
    began = time.monotonic()
    with log.open("a") as file:
        answer = subprocess.run(
            [sys.executable, *command], cwd=clone, env=variables, stdout=file, stderr=file
        )
    if answer.returncode:
        raise OmniForcingError(
            "benchmarks.command-failed",
            f"`{' '.join(command)}` ended with {answer.returncode}: {log.read_text()[-2000:]}",
        )
    return time.monotonic() - began


def last_run(clone: Path) -> tuple[Any, Any]:
    """Open the clone's MLflow store; return its client and its latest run."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("omniforcing")
    return client, client.search_runs(
        [experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1
    )[0]


def logged(clone: Path) -> tuple[list[tuple[int, dict[str, float]]], float]:
    """Return what the latest run logged at each step, and the seconds of its training loop.

    Raises:
        OmniForcingError: if it logged fewer than two steps.
    """
    client, run = last_run(clone)
    steps: dict[int, dict[str, float]] = {}
    times: dict[int, int] = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            steps.setdefault(metric.step, {})[name] = metric.value
            if name == "loss_video":
                times[metric.step] = metric.timestamp
    first, last = min(times, default=0), max(times, default=0)
    if first == last:
        raise OmniForcingError(
            "benchmarks.too-few-steps",
            "the stage logged fewer than two steps; name a preset that trains longer",
        )
    # The log spans the end of the first logged step to the end of the last: scale to all steps.
    return sorted(steps.items()), (times[last] - times[first]) / 1000 * (last + 1 - first) / (
        last - first
    )


def logging_again(clone: Path, folder: Path, variables: Mapping[str, str]) -> tuple[float, float]:
    """Log the latest run again; return the seconds of its metrics, and of MLflow's other work."""
    client, run = last_run(clone)
    store = Path(tempfile.mkdtemp(dir=folder))
    (store / "artifacts").mkdir()
    artifacts = client.download_artifacts(run.info.run_id, "", str(store / "artifacts"))
    held = {"params": dict(run.data.params), "metrics": logged(clone)[0], "artifacts": artifacts}
    (store / "held.json").write_text(json.dumps(held))
    (store / ".work").mkdir()
    command, log = ["-c", AGAIN, str(store), str(store / "held.json")], store / "log.txt"
    for _ in range(2):  # the first creates the store
        (store / "run.json").unlink(missing_ok=True)
        timed(command, clone, {**variables, "OMNIFORCING_DATA_ROOT": str(store)}, log)
    metrics, rest = map(float, log.read_text().split()[-2:])
    return metrics, rest


def measure(
    clone: Path, preset: str, stage: str, cluster: LocalCluster, job: bool, folder: Path
) -> dict[str, Any]:
    """Train a stage once, in process or as a job; return its row of the table."""
    variables = {**cluster.environment, CLUSTER_VARIABLE: "measured" if job else "local"}
    # A finished training would be found and not run again.
    remove(clone / ".work" / preset / stage)
    code, target = (dvc_target(clone, preset, name) for name in (CODE, stage))
    timed(["-m", "dvc", "repro", code], clone, variables, folder / "log.txt")
    timed(
        ["-m", "dvc", "status", target], clone, variables, folder / "log.txt"
    )  # hashes what is new to a clone
    wall = timed(["-m", "dvc", "repro", "-f", "-s", target], clone, variables, folder / "log.txt")
    metrics, rest = logging_again(clone, folder, variables)
    parts = {"training": logged(clone)[1] - metrics, "MLflow": metrics + rest}
    if not job:
        # A job's own clock begins long after the submitter's.
        parts["DVC"] = wall - float(
            read_json(clone / ".work" / preset / "timings.json")[stage]["seconds"]
        )
    way = f"job, {WORKERS} workers" if job else "in process"
    return {
        "stage": stage,
        "way": way,
        "seconds": wall,
        **parts,
        "rest": wall - sum(parts.values()),
    }


def shown(row: Mapping[str, Any]) -> str:
    """Format a row of the table."""
    numbers = "".join(f"{row[part]:>10.1f}" if part in row else f"{'-':>10}" for part in PARTS)
    return (
        f"{row['stage']:<20}{row['way']:<18}{numbers}{1 - row['training'] / row['seconds']:>10.1%}"
    )


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", default=STAGES, help=f"default: {' '.join(STAGES)}")
    parser.add_argument("--preset", default="pocket", help="whose stages (default: pocket)")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="clone into this new folder and leave it there"
    )
    parser.add_argument("--json", action="store_true", help="print json")
    arguments = parser.parse_args()

    def run() -> None:
        root, rows = project_root(), []
        load_config(root=root, preset=arguments.preset)
        with tempfile.TemporaryDirectory(prefix="omniforcing-overhead-") as name:
            folder = Path(name)
            clone = clone_of(
                root, arguments.preset, (arguments.keep or folder / "clone").absolute()
            )
            if not arguments.json:
                heads = "".join(f"{head:>10}" for head in (*PARTS, "not loop"))
                print(f"{'stage':<20}{'way':<18}{heads}", flush=True)
            with own_cluster(PYTHONPATH=str(clone / "src")) as cluster:
                named = f"address: {cluster.address}\njobs: {cluster.jobs}\nworkers: {WORKERS}\n"
                (clone / "conf" / "cluster" / "measured.yaml").write_text(named)
                for job in (False, True):
                    if job:
                        cluster.head(WORKERS)
                    for stage in arguments.stages:
                        rows.append(measure(clone, arguments.preset, stage, cluster, job, folder))
                        if not arguments.json:
                            print(shown(rows[-1]), flush=True)
        if arguments.json:
            print(json.dumps(rows, indent=2))

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
