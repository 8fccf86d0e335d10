"""Where a stage trains: in this process, or with a cluster named in each of its workers under Ray Train.

Ray is driven from a process of its own, so that the stage outlives a cluster whose head is lost, and goes on when it is back.
All state lies in the stage's work folder: what runs again goes on from the last checkpoint there, and from nothing of Ray's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omniforcing.config import ClusterConfig
from omniforcing.errors import OmniForcingError
from omniforcing.files import atomic_write, read_json, remove, write_json

JOB, ORDER, ANSWER, FAILURE = "job.pkl", "order.json", "answer.json", "failure.json"
LOST = 75  # exit code of a driver that cannot reach its cluster
PATIENCE = 900.0  # seconds in which a lost cluster must be back
PAUSE = 5.0  # seconds between two looks for it
# What workers need to know of this process's environment; credentials must stand in the nodes' own.
FORWARDED = (
    *("PYTHONPATH", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"),
    *("OMNIFORCING_PARENT_RUN", "OMNIFORCING_GIT_COMMIT"),
)


class ClusterError(OmniForcingError):
    """A cluster that cannot do what the config asks of it; says what is missing and where."""


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
    _check_address(cluster.address, ClusterError)
    import cloudpickle

    folder = work / "ray"
    remove(folder)
    folder.mkdir(parents=True)
    atomic_write(folder / JOB, cloudpickle.dumps(function))
    write_json(folder / ORDER, asdict(cluster) | {"strategy": cluster.strategy.value})
    _supervise(folder)
    remove(folder)


def _supervise(folder: Path) -> None:
    """Run the driver until it has an answer; after a lost cluster again, for as long as patience lasts."""
    lost: float | None = None
    while True:
        _drive(folder, again=lost is not None)
        if (folder / ANSWER).is_file():
            answer = read_json(folder / ANSWER)
            if answer["error"]:
                raise OmniForcingError(answer["error"])
            return
        began = read_json(folder / "began.json")["time"] if (folder / "began.json").is_file() else None
        if lost is None or (began is not None and began > lost):
            lost = time.time()
            print("the cluster is lost; waiting for it, to go on from the last checkpoint", file=sys.stderr, flush=True)
        if time.time() - lost > PATIENCE:
            raise ClusterError(
                f"the cluster did not come back within {PATIENCE / 60:.0f} minutes; start it and run the same command again, "
                f"it continues from the last checkpoint"
            )
        time.sleep(PAUSE)


def _drive(folder: Path, again: bool) -> None:
    """One driver process, which ends with us."""
    from omniforcing.ops.stage import die_with_parent

    command = [sys.executable, "-m", "omniforcing.ops.launch", str(folder), *(["again"] if again else [])]
    # Train reports to a dashboard that small clusters may lack; its state actor is of no use to us.
    environment = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", **os.environ}
    driver = subprocess.Popen(command, env=environment, preexec_fn=partial(die_with_parent, os.getpid()))
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
    del order["strategy"]
    try:
        _train(ClusterConfig(**order), folder, again)
    except ClusterLost as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(LOST)
    except OmniForcingError as error:
        write_json(folder / ANSWER, {"error": str(error)})
    else:
        write_json(folder / ANSWER, {"error": None})


def _train(cluster: ClusterConfig, folder: Path, again: bool) -> None:
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    _connect(cluster, again)
    try:
        _check_room(cluster, again)
        _check_nodes(cluster, folder)
        write_json(folder / "began.json", {"time": time.time()})
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"folder": str(folder)},
            scaling_config=ScalingConfig(
                num_workers=cluster.workers, use_gpu=cluster.gpus > 0, resources_per_worker=_needs(cluster)
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
                f"the workers failed more often than cluster.restarts={cluster.restarts} (see above); the last checkpoint is "
                f"kept: run the same command again, it continues there"
            ) from error
    except (RayError, ConnectionError) as error:
        raise ClusterLost(f"the cluster at {cluster.address} is lost: {str(error).splitlines()[0]}") from error
    finally:
        ray.shutdown()
    if message := _failure(folder):
        raise OmniForcingError(message)


def _still_there(cluster: ClusterConfig, error: Exception) -> None:
    """Raise ``ClusterLost`` if what failed was the cluster and not the workers."""
    host, _, port = str(cluster.address).rpartition(":")
    if port.isdigit() and not _answers(host, int(port)):
        raise ClusterLost(f"the cluster at {cluster.address} is lost") from error


def _failure(folder: Path) -> str | None:
    path = folder / FAILURE
    return read_json(path)["error"] if path.is_file() else None


def _check_address(address: str, kind: type[Exception]) -> None:
    """Refuse an address at which nothing answers, as ``kind``, and one of another sort."""
    if address.startswith("ray://"):
        raise ClusterError(f"cluster.address is {address}; name the head itself, HOST:6379, or submit the stage as a Ray job")
    host, _, port = address.rpartition(":")
    if port.isdigit() and not _answers(host, int(port)):
        raise kind(f"no Ray cluster answers at cluster.address={address}; start it with `ray start --head` or name another")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


def _connect(cluster: ClusterConfig, again: bool) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    address, kind = str(cluster.address), ClusterLost if again else ClusterError
    _check_address(address, kind)
    variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    try:
        ray.init(address=address, runtime_env={"env_vars": variables}, logging_level="WARNING")
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise kind(
            f"the Ray cluster at cluster.address={address} lets this process not in ({reason}); most often its token "
            f"is another: "
            f"set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token) to what the head was started with"
        ) from error


def _needs(cluster: ClusterConfig) -> dict[str, float]:
    return {"CPU": cluster.cpus} | ({"GPU": cluster.gpus} if cluster.gpus else {})


def room(nodes: list[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many workers fit on nodes of such resources, if nothing else runs there."""
    return sum(min(int(node.get(name, 0) // need) for name, need in needs.items() if need) for node in nodes)


def _check_room(cluster: ClusterConfig, again: bool) -> None:
    import ray

    found = room([node["Resources"] for node in ray.nodes() if node["Alive"]], _needs(cluster))
    if found < cluster.workers:
        each = " and ".join(f"{need:g} {name}" for name, need in _needs(cluster).items())
        message = f"the cluster has room for {found} workers of {each}, but cluster.workers is {cluster.workers}"
        # Nodes come back one by one.
        raise ClusterLost(message) if again else ClusterError(f"{message}; lower it, or add nodes")


@dataclass(frozen=True)
class Installed:
    """What code a process runs."""

    place: str
    code: str
    versions: dict[str, str]


def installed() -> Installed:
    """What code this process runs."""
    from importlib.metadata import version

    import omniforcing
    from omniforcing.files import tree_digest

    place = Path(str(omniforcing.__file__)).parent
    return Installed(str(place), tree_digest(place), {name: version(name) for name in ("torch", "lightning", "diffusers")})


def difference(here: Installed, there: Installed) -> str | None:
    """In words, how the code of a node differs from ours in what it computes; None if it does not."""
    for name, ours in here.versions.items():
        if there.versions[name] != ours:
            return f"has {name} {there.versions[name]} where this process has {ours}; install {name} {ours} there"
    if here.code != there.code:
        return (
            f"runs another version of omniforcing ({there.place}) than this process ({here.place}); "
            f"install the same commit there"
        )
    return None


def _check_nodes(cluster: ClusterConfig, folder: Path) -> None:
    """Refuse nodes that run other code or do not see the work folder."""
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    nodes = [node for node in ray.nodes() if node["Alive"] and room([node["Resources"]], _needs(cluster))]
    asked = {
        node["NodeManagerAddress"] + f" ({node['NodeID'][:6]})": look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(str(folder), node["NodeID"])
        for node in nodes
    }
    here = installed()
    for name, answer in asked.items():
        try:
            there, problem = ray.get(answer)
        except RayTaskError as error:
            reason = str(error.cause or error).strip().splitlines()[-1]
            raise ClusterError(f"node {name} cannot run omniforcing ({reason}); install the same environment there") from error
        if problem := problem or difference(here, Installed(**there)):
            raise ClusterError(f"node {name} {problem}")


def _look(folder: str, node: str) -> tuple[dict[str, Any], str | None]:
    """On a node: what is installed, and what is wrong with the work folder as it sees it."""
    from omniforcing.ops import launch

    if not (Path(folder) / launch.JOB).is_file():
        problem: str | None = f"does not see {folder}; the project must lie on storage that all nodes share, under one path"
    else:
        problem = None
        try:
            probe = Path(folder) / f"probe-{node}"
            probe.write_bytes(bytes(2**20))
            probe.unlink()
        except OSError as error:
            free = shutil.disk_usage(folder).free / 1e6
            problem = f"cannot write into {folder} ({error.strerror}, {free:.0f} MB free); free some space or its permissions"
    return asdict(launch.installed()), problem


def _worker(order: dict[str, str]) -> None:
    """In each worker: the job, which finds its ranks in the process group."""
    import cloudpickle
    import torch
    from ray.train.torch import get_device

    from omniforcing.console import explain

    folder = Path(order["folder"])
    if (folder / "failure.json").exists():
        return  # Said once: a mistake of the user's is the same the next time.
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        cloudpickle.loads((folder / "job.pkl").read_bytes())()
    except Exception as error:
        if (sentence := explain(error)) and not isinstance(error, OSError):
            write_json(folder / "failure.json", {"error": sentence})
        raise


if __name__ == "__main__":
    drive(Path(sys.argv[1]), "again" in sys.argv[2:])
