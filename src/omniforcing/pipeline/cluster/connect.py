"""A named Ray cluster: reaching it, and refusing what it cannot do before anything starts, in one sentence each."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.environment import COMMIT_VARIABLE, DATA_ROOT_VARIABLE, PARENT_VARIABLE
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import tree_digest
from omniforcing.pipeline.cluster.config import ClusterConfig

MARK = ".cluster"
ROOM = 64 << 20  # bytes that a node must have free where it writes
# What workers need to know of this process's environment; credentials must stand in the nodes' own.
FORWARDED = (
    *("PYTHONPATH", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"),
    *(PARENT_VARIABLE, COMMIT_VARIABLE, DATA_ROOT_VARIABLE),
)


class ClusterError(OmniForcingError):
    """A cluster that cannot do what the config asks of it; says what is missing and where."""


def answers(host: str, port: int) -> bool:
    """Whether anything listens there."""
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


def unreachable(key: str, address: str, note: str = "") -> ClusterError:
    """Build the error for an address at which nothing answers.

    Args:
        key: the configuration key that holds the address.
        address: what it holds.
        note: what else is known, in brackets.
    """
    return ClusterError(
        "cluster.unreachable",
        f"no Ray cluster answers at {key}={address}; start it with `ray start --head` "
        f"or name another{note}",
    )


def refused_token(address: str, note: str = "") -> ClusterError:
    """Build the error for a token that a cluster does not take; ``note`` is appended."""
    return ClusterError(
        "cluster.refused-token",
        f"the cluster at {address} refuses this token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
        f"(or ~/.ray/auth_token) to what its head was started with{note}",
    )


def connect(cluster: ClusterConfig) -> None:
    """Make this process a driver of the cluster, its workers with our code and environment.

    Raises:
        ClusterError: if nothing answers, or it refuses the token.
    """
    import ray
    from ray.exceptions import AuthenticationError

    os.environ.setdefault("RAY_AUTH_MODE", "token")
    address = str(cluster.address)
    host, _, port = address.rpartition(":")
    if port.isdigit() and not answers(host.rpartition("//")[2], int(port)):
        raise unreachable("cluster.address", address)
    variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    # A job's working folder comes with the job, and its PYTHONPATH names that.
    environment = {} if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else {"env_vars": variables}
    try:
        ray.init(
            address=address, runtime_env=environment, logging_level="WARNING", log_to_driver=True
        )
    except AuthenticationError as error:
        raise refused_token(address) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        if port.isdigit():
            # Ray tells a wrong token to its log alone; to us it is a connection that failed though somebody listens.
            also = f"if it is the same, the head is too busy or runs another Ray than {ray.__version__} here; Ray says: {said}"
            raise refused_token(address, f" ({also})") from error
        raise unreachable("cluster.address", address, f" ({said})") from error


def needs(cluster: ClusterConfig) -> dict[str, float]:
    """What a worker holds of a node."""
    return {"CPU": cluster.cpus} | ({"GPU": cluster.gpus} if cluster.gpus else {})


def room(nodes: list[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """How many workers fit on nodes of such resources, if nothing else runs there."""
    return sum(
        min(int(node.get(name, 0) // need) for name, need in each.items() if need) for node in nodes
    )


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def check_room(cluster: ClusterConfig) -> None:
    """Refuse more workers than fit, at once: Ray would wait for nodes that nobody adds.

    Raises:
        ClusterError: with how many fit.
    """
    found = room([node["Resources"] for node in _nodes()], needs(cluster))
    if found < cluster.workers:
        each = " and ".join(f"{need:g} {name}" for name, need in needs(cluster).items())
        raise ClusterError(
            "cluster.too-small",
            f"the cluster has room for {found} workers of {each}, but cluster.workers is {cluster.workers}; "
            f"lower it, or add nodes",
        )


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

    place = Path(str(omniforcing.__file__)).parent
    return Installed(
        str(place),
        tree_digest(place),
        {name: version(name) for name in ("torch", "lightning", "diffusers", "webdataset")},
    )


def difference(here: Installed, there: Installed) -> str | None:
    """In words, how the code of a node differs from ours in what it computes; None if it does not."""
    for name, ours in here.versions.items():
        if there.versions[name] != ours:
            return f"has {name} {there.versions[name]} where this process has {ours}; install {name} {ours} there"
    if here.code != there.code:
        places = f"({there.place}) than this process ({here.place})"
        return f"runs another version of omniforcing {places}; install the same commit there"
    return None


def check_nodes(cluster: ClusterConfig, reads: list[Path], writes: Path) -> None:
    """Refuse nodes that run other code, do not see our files, or cannot write beside us.

    Raises:
        ClusterError: naming the node, the path and the remedy.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = writes / MARK
    mark.touch()
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {
        node["NodeManagerAddress"] + f" ({node['NodeID'][:6]})": look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote([str(path) for path in (mark, *reads)], str(writes), node["NodeID"])
        for node in _nodes()
        if room([node["Resources"]], needs(cluster))
    }
    here = installed()
    for name, answer in asked.items():
        try:
            there, problem = ray.get(answer)
        except RayTaskError as error:
            reason = str(error.cause or error).strip().splitlines()[-1]
            raise ClusterError(
                "cluster.unusable-node",
                f"node {name} cannot run omniforcing ({reason}); install the same environment there",
            ) from error
        if problem := problem or difference(here, Installed(**there)):
            raise ClusterError("cluster.unusable-node", f"node {name} {problem}")
    mark.unlink()


def _look(reads: list[str], writes: str, node: str) -> tuple[dict[str, Any], str | None]:
    """On a node: what is installed, and what is wrong with the files as it sees them."""
    # The module as it is installed there, not as it was pickled here.
    from omniforcing.pipeline.cluster import connect as cluster

    return asdict(cluster.installed()), cluster.problem_with(reads, Path(writes), node)


def problem_with(reads: list[str], writes: Path, node: str) -> str | None:
    """What keeps this node from working on the files of another, if anything does."""
    for path in reads:
        if not Path(path).exists():
            return f"does not see {path}; the data must lie on storage that all nodes share, under one path"
    try:
        free = shutil.disk_usage(writes).free
        if free < ROOM:
            return f"has {free / 1e6:.0f} MB free at {writes}, and {ROOM / 1e6:.0f} MB are the least; free some space there"
        probe = writes / f".probe-{node}"
        probe.write_bytes(bytes(2**20))
        probe.unlink()
    except OSError as error:
        return f"cannot write into {writes} ({error.strerror}); free some space there or mend its permissions"
    return None
