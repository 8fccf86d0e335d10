"""Where a stage trains: in this process, or with a cluster named in each of its workers under Ray Train.

Ray is driven from a process of its own, so that the stage outlives a cluster whose head is lost, and goes on when it is back.
All state lies in the stage's work folder: what runs again goes on from the last checkpoint there, and from nothing of Ray's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from omniforcing.core.environment import die_with_parent
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_write, disk_full, read_json, remove, write_json
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.connect import (
    ClusterError,
    answers,
    check_nodes,
    check_room,
    connect,
    needs,
    unreachable,
)

JOB, ORDER, ANSWER, FAILURE = "job.pkl", "order.json", "answer.json", "failure.json"
LOST = 75  # exit code of a driver that cannot reach its cluster
PATIENCE = 900.0  # seconds in which a lost cluster must be back
PAUSE = 5.0  # seconds between two looks for it


class ClusterLost(Exception):
    """The cluster does not answer, or no longer; it may be back later."""


def launch(function: Callable[[], None], cluster: ClusterConfig, work: Path) -> None:
    """Call ``function`` here, or if a cluster is named in each of its workers, which then form a process group.

    Args:
        function: goes on from what it finds in ``work``; workers get it pickled.
        cluster: without an address, this process.
        work: a folder that all nodes see under the same path.

    Raises:
        ClusterError: if the cluster cannot be reached, is too small, or differs from this process.
        OmniForcingError: what ``function`` raised in a worker.
    """
    if cluster.address is None:
        function()
        return
    _check_address(cluster.address)
    import cloudpickle

    folder = work / "ray"
    remove(folder)
    folder.mkdir(parents=True)
    atomic_write(folder / JOB, cloudpickle.dumps(function))
    write_json(
        folder / ORDER,
        {
            name: getattr(cluster, name)
            for name in ("address", "workers", "cpus", "gpus", "restarts")
        },
    )
    _supervise(folder)
    remove(folder)


def _check_address(address: str) -> None:
    """Refuse at once what no driver could reach."""
    if address.startswith("ray://"):
        raise ClusterError(
            "cluster.wrong-address",
            f"cluster.address is {address}; name the head itself, HOST:6379, or submit the stage as a Ray job",
        )
    host, _, port = address.rpartition(":")
    if port.isdigit() and not answers(host, int(port)):
        raise unreachable("cluster.address", address)


def _supervise(folder: Path) -> None:
    """Run the driver until it has an answer; after a lost cluster again, for as long as patience lasts."""
    lost: float | None = None
    while True:
        _drive(folder, again=lost is not None)
        if (folder / ANSWER).is_file():
            answer = read_json(folder / ANSWER)
            if answer["error"]:
                raise OmniForcingError.from_json(answer["error"])
            return
        began = (
            read_json(folder / "began.json")["time"] if (folder / "began.json").is_file() else None
        )
        if lost is None or (began is not None and began > lost):
            lost = time.time()
            print(
                "the cluster is lost; waiting for it, to go on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        if time.time() - lost > PATIENCE:
            raise ClusterError(
                "cluster.unreachable",
                f"the cluster did not come back within {PATIENCE / 60:.0f} minutes; start it and run the same command again, "
                f"it continues from the last checkpoint",
            )
        time.sleep(PAUSE)


def _drive(folder: Path, again: bool) -> None:
    """One driver process, which ends with us."""

    command = [
        sys.executable,
        "-m",
        "omniforcing.pipeline.cluster.launch",
        str(folder),
        *(["again"] if again else []),
    ]
    # Train reports to a dashboard that small clusters may lack; its state actor is of no use to us.
    environment = {
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        **os.environ,
    }
    driver = subprocess.Popen(
        command, env=environment, preexec_fn=partial(die_with_parent, os.getpid())
    )
    try:
        driver.wait()
    finally:
        if driver.poll() is None:
            driver.terminate()
            try:
                driver.wait(20)
            except subprocess.TimeoutExpired:
                driver.kill()


# --- in the driver process --------------------------------------------------------------------------------------------------


def drive(folder: Path, again: bool) -> None:
    """Train on the cluster that ``folder`` orders, and leave an answer there; none if the cluster is lost."""
    order = read_json(folder / ORDER)
    try:
        _train(ClusterConfig(**order), folder, again)
    except ClusterLost as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(LOST)
    except OmniForcingError as error:
        write_json(folder / ANSWER, {"error": error.as_json()})
    else:
        write_json(folder / ANSWER, {"error": None})


def _train(cluster: ClusterConfig, folder: Path, again: bool) -> None:
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    try:
        _reach(cluster, folder, again)
        write_json(folder / "began.json", {"time": time.time()})
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"folder": str(folder)},
            scaling_config=ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.gpus > 0,
                resources_per_worker=needs(cluster),
            ),
            # A name of its own each time: under an old one Ray would go on from its own idea of that run.
            run_config=RunConfig(
                name=uuid.uuid4().hex[:8],
                storage_path=str(folder / "train"),
                failure_config=FailureConfig(max_failures=cluster.restarts),
            ),
        )
        trainer.fit()
    except TrainingFailedError as error:
        if not _failure(folder):
            _still_there(cluster, error)
            raise OmniForcingError(
                "cluster.workers-died",
                f"the workers failed more often than cluster.restarts={cluster.restarts} (see above); the last checkpoint is "
                f"kept: run the same command again, it continues there",
            ) from error
    except (RayError, ConnectionError) as error:
        raise ClusterLost(
            f"the cluster at {cluster.address} is lost: {str(error).splitlines()[0]}"
        ) from error
    finally:
        ray.shutdown()
    if failure := _failure(folder):
        raise failure


def _still_there(cluster: ClusterConfig, error: Exception) -> None:
    """Raise ``ClusterLost`` if what failed was the cluster and not the workers."""
    host, _, port = str(cluster.address).rpartition(":")
    if port.isdigit() and not answers(host, int(port)):
        raise ClusterLost(f"the cluster at {cluster.address} is lost") from error


def _failure(folder: Path) -> OmniForcingError | None:
    path = folder / FAILURE
    return OmniForcingError.from_json(read_json(path)) if path.is_file() else None


def _reach(cluster: ClusterConfig, folder: Path, again: bool) -> None:
    """Become a driver of the cluster, once it is all that the config asks for; ``again``: not yet is no mistake then."""
    try:
        connect(cluster)
        check_room(cluster)
    except ClusterError as error:
        if again:
            raise ClusterLost(str(error)) from error
        raise
    check_nodes(cluster, [folder / JOB], folder)


def _worker(order: dict[str, str]) -> None:
    """In each worker: the job, which finds its ranks in the process group."""
    import cloudpickle
    import torch
    from ray.train.torch import get_device

    from omniforcing.core.console import explain

    folder = Path(order["folder"])
    if (folder / FAILURE).exists():
        return  # Said once: a mistake of the user's is the same the next time.
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        cloudpickle.loads((folder / JOB).read_bytes())()
    except Exception as error:
        if (explained := explain(error)) and not disk_full(error):
            write_json(folder / FAILURE, explained.as_json())
        raise


if __name__ == "__main__":
    drive(Path(sys.argv[1]), "again" in sys.argv[2:])
