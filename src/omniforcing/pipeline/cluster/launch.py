"""Run a training in this process, in several of this machine, or in workers of a Ray cluster.

A separate driver process talks to Ray. If the cluster's head dies, the driver ends with it; the
stage's own process waits until the cluster is back and starts a new driver. All state lies in the
stage's work folder: a training that is started again continues from the last checkpoint there and
uses none of Ray's own checkpoints.
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
from omniforcing.pipeline.cluster.local import train_together

JOB, ORDER, ANSWER, FAILURE = "job.pkl", "order.json", "answer.json", "failure.json"
LOST = 75  # exit code of a driver that cannot reach its cluster
PATIENCE = 900.0  # seconds until a lost cluster must be back
PAUSE = 5.0  # seconds between two attempts to reach it


class ClusterLost(Exception):
    """The cluster does not answer now; it may later."""


def launch(
    function: Callable[[], None], cluster: ClusterConfig, work: Path, processes: int = 1
) -> None:
    """Call a function in this process, or in each of several that form one process group.

    Args:
        function: continues from the last checkpoint in ``work``; workers get it pickled.
        cluster: with an ``address``, the function is called in the cluster's workers.
        work: folder that all nodes see under the same path.
        processes: of this machine, where no cluster is named; 1 for this one.

    Raises:
        ClusterError: if the cluster cannot be reached, is too small, or a node runs other code.
        OmniForcingError: if ``function`` raised it in a worker, or workers died too often.
    """
    if cluster.address is None:
        if processes > 1:
            train_together(function, processes)
        else:
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
    """Refuse an address that no driver could reach, before one is started."""
    if address.startswith("ray://"):
        raise ClusterError(
            "cluster.wrong-address",
            f"cluster.address is {address}; name the head itself, HOST:6379, "
            f"or submit the stage as a Ray job",
        )
    host, _, port = address.rpartition(":")
    if port.isdigit() and not answers(host, int(port)):
        raise unreachable("cluster.address", address)


def _supervise(folder: Path) -> None:
    """Run drivers one after the other until one leaves an answer.

    Raises:
        ClusterError: if a lost cluster is not back within ``PATIENCE`` seconds.
        OmniForcingError: if the answer is an error.
    """
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
        # A training that began since the last loss was on a cluster that had come back: this is a
        # new loss, with a new deadline.
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
                f"the cluster did not come back within {PATIENCE / 60:.0f} minutes; "
                f"start it and run the same command again, "
                f"it continues from the last checkpoint",
            )
        time.sleep(PAUSE)


def _drive(folder: Path, again: bool) -> None:
    """Run one driver process to its end; it dies when this process does.

    Args:
        folder: holds the order, and gets the answer.
        again: whether a driver before this one lost the cluster.
    """
    command = [
        sys.executable,
        "-m",
        "omniforcing.pipeline.cluster.launch",
        str(folder),
        *(["again"] if again else []),
    ]
    # Ray Train's state actor reports to a dashboard that small clusters may lack, and nothing here
    # reads it.
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


# --- in the driver process ------------------------------------------------------------------------


def drive(folder: Path, again: bool) -> None:
    """Train on a cluster, and write ``ANSWER``; exit with ``LOST`` and without it if it is lost.

    Args:
        folder: holds the function (``JOB``) and the cluster's keys (``ORDER``).
        again: whether an earlier driver lost the cluster, which may still be starting.
    """
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
    """Run the workers until all end; Ray replaces dead ones ``cluster.restarts`` times.

    Raises:
        ClusterLost: if the cluster stopped answering.
        OmniForcingError: if a worker left one in ``FAILURE``, or workers died too often.
    """
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
            # A new name each time: for a name that it knows, Ray would restore the state that it
            # kept of that run.
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
                f"the workers failed more often than cluster.restarts={cluster.restarts} "
                f"(see above); the last checkpoint is kept: "
                f"run the same command again, it continues there",
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
    """Raise ``ClusterLost`` if the head no longer answers: then the workers were not at fault."""
    host, _, port = str(cluster.address).rpartition(":")
    if port.isdigit() and not answers(host, int(port)):
        raise ClusterLost(f"the cluster at {cluster.address} is lost") from error


def _failure(folder: Path) -> OmniForcingError | None:
    """Read the error that a worker left; None if there is none."""
    path = folder / FAILURE
    return OmniForcingError.from_json(read_json(path)) if path.is_file() else None


def _reach(cluster: ClusterConfig, folder: Path, again: bool) -> None:
    """Connect to the cluster and check its nodes.

    Raises:
        ClusterLost: with ``again``, if it does not answer or has too few nodes: a head that starts
            again is alone until its nodes join.
        ClusterError: without ``again``, for the same; always if a node is unfit.
    """
    try:
        connect(cluster)
        check_room(cluster)
    except ClusterError as error:
        if again:
            raise ClusterLost(str(error)) from error
        raise
    check_nodes(cluster, [folder / JOB], folder)


def _worker(order: dict[str, str]) -> None:
    """Run the function in a worker, where Ray Train has made the process group.

    An error that the user can mend is written to ``FAILURE`` for the driver. A full disk is not:
    there may be space again when Ray replaces the worker.
    """
    import cloudpickle
    import torch
    from ray.train.torch import get_device

    from omniforcing.core.console import explain

    folder = Path(order["folder"])
    if (folder / FAILURE).exists():
        # Ray starts all workers again after any error. The same input fails in the same way, so
        # end at once and let the driver report the first failure.
        return
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
