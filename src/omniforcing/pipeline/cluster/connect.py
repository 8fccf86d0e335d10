"""Reach a Ray cluster and check it before anything starts.

Too few resources, other code on a node or a folder that a node cannot see would show hours later,
or as a worker that waits forever. Each is refused here in one sentence with its remedy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.environment import COMMIT_VARIABLE, DATA_ROOT_VARIABLE, PARENT_VARIABLE
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import tree_digest
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.tracking.store import answers

MARK = ".cluster"
ROOM = 64 << 20  # bytes that a node must have free where it writes
# Variables that workers get from this process. No credentials: Ray shows runtime environments in
# its dashboard, so those belong in the environment of each node.
FORWARDED = (
    *("PYTHONPATH", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"),
    *(PARENT_VARIABLE, COMMIT_VARIABLE, DATA_ROOT_VARIABLE),
)


# Variables by which Ray would ask another cluster than the one that the configuration names.
ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class ClusterError(OmniForcingError):
    """A cluster cannot do what the configuration asks; the sentence says how to mend it."""


@contextlib.contextmanager
def named_address_only() -> Iterator[None]:
    """Hide the environment's Ray addresses from Ray while the body runs.

    Ray prefers them to the address that it is given: a job, and the token with it, would go to
    another cluster than the configuration's.
    """
    hidden = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def unreachable(key: str, address: str, note: str = "") -> ClusterError:
    """Build the error for an address at which nothing answers.

    Args:
        key: configuration key that holds the address.
        address: its value.
        note: text appended to the sentence, such as Ray's own message in brackets.
    """
    return ClusterError(
        "cluster.unreachable",
        f"no Ray cluster answers at {key}={address}; start it with `ray start --head` "
        f"or name another{note}",
    )


def refused_token(address: str, note: str = "") -> ClusterError:
    """Build the error for a token that a cluster refuses.

    Args:
        address: the cluster's.
        note: text appended to the sentence.
    """
    return ClusterError(
        "cluster.refused-token",
        f"the cluster at {address} refuses this token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
        f"(or ~/.ray/auth_token) to what its head was started with{note}",
    )


def connect(cluster: ClusterConfig) -> None:
    """Connect this process to a cluster as a Ray driver.

    Workers get the variables in ``FORWARDED``. A driver that runs inside a Ray job gives none: its
    job has set them.

    Args:
        cluster: its ``address`` must be set.

    Raises:
        ClusterError: if nothing answers, or the token is refused.
    """
    import ray
    from ray.exceptions import AuthenticationError

    os.environ.setdefault("RAY_AUTH_MODE", "token")
    address = str(cluster.address)
    host, _, port = address.rpartition(":")
    if port.isdigit() and not answers(host.rpartition("//")[2], int(port)):
        raise unreachable("cluster.address", address)
    variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    # In a job, PYTHONPATH names the working folder that Ray unpacked on this node; a worker on
    # another node has its own, and would look for code in a folder that it lacks.
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    environment = {} if in_job else {"env_vars": variables}
    # In a job RAY_ADDRESS is the job's own cluster, and `auto` means that one.
    hide = contextlib.nullcontext() if in_job else named_address_only()
    try:
        with hide:
            ray.init(
                address=address,
                runtime_env=environment,
                logging_level="WARNING",
                log_to_driver=True,
            )
    except AuthenticationError as error:
        raise refused_token(address) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        if port.isdigit():
            # Ray reports a wrong token in its log only; here it is a connection that failed
            # although the port is open.
            also = (
                f"if it is the same, the head is too busy or runs another Ray than "
                f"{ray.__version__} here; Ray says: {said}"
            )
            raise refused_token(address, f" ({also})") from error
        raise unreachable("cluster.address", address, f" ({said})") from error


def needs(cluster: ClusterConfig) -> dict[str, float]:
    """Resources that one worker reserves, by Ray's names."""
    return {"CPU": cluster.cpus} | ({"GPU": cluster.gpus} if cluster.gpus else {})


def room(nodes: list[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """Count the workers that fit on empty nodes.

    Args:
        nodes: resources of each node, by Ray's names.
        each: resources of one worker.
    """
    return sum(
        min(int(node.get(name, 0) // need) for name, need in each.items() if need) for node in nodes
    )


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def check_room(cluster: ClusterConfig) -> None:
    """Refuse more workers than fit; Ray would wait for more nodes without end.

    Raises:
        ClusterError: if ``cluster.workers`` do not fit; names how many do.
    """
    found = room([node["Resources"] for node in _nodes()], needs(cluster))
    if found < cluster.workers:
        each = " and ".join(f"{need:g} {name}" for name, need in needs(cluster).items())
        raise ClusterError(
            "cluster.too-small",
            f"the cluster has room for {found} workers of {each}, "
            f"but cluster.workers is {cluster.workers}; lower it, or add nodes",
        )


@dataclass(frozen=True)
class Installed:
    """The code that a process runs.

    Attributes:
        place: folder of the package.
        code: digest of its files.
        versions: versions of the libraries that decide what is computed.
    """

    place: str
    code: str
    versions: dict[str, str]


def installed() -> Installed:
    """Read which code this process runs."""
    from importlib.metadata import version

    import omniforcing

    place = Path(str(omniforcing.__file__)).parent
    return Installed(
        str(place),
        tree_digest(place),
        {name: version(name) for name in ("torch", "lightning", "diffusers", "webdataset")},
    )


def difference(here: Installed, there: Installed) -> str | None:
    """Say how a node's code differs from this process's.

    Returns:
        The end of a sentence that begins with the node's name; None if both compute the same.
    """
    for name, ours in here.versions.items():
        if there.versions[name] != ours:
            return (
                f"has {name} {there.versions[name]} where this process has {ours}; "
                f"install {name} {ours} there"
            )
    if here.code != there.code:
        places = f"({there.place}) than this process ({here.place})"
        return f"runs another version of omniforcing {places}; install the same commit there"
    return None


def check_nodes(cluster: ClusterConfig, reads: list[Path], writes: Path) -> None:
    """Refuse nodes that run other code, do not see the files, or cannot write to the work folder.

    Every node that has room for a worker is asked, all at the same time.

    Args:
        cluster: connected already.
        reads: files and folders that each node must see.
        writes: folder that each node must see and write to.

    Raises:
        ClusterError: if a node is unfit; names the node, the path and the remedy.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A node may have a folder of this name on a disk of its own. Seeing a file that was written
    # just now shows that it is the same folder.
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
                f"node {name} cannot run omniforcing ({reason}); "
                f"install the same environment there",
            ) from error
        if problem := problem or difference(here, Installed(**there)):
            raise ClusterError("cluster.unusable-node", f"node {name} {problem}")
    mark.unlink()


def _look(reads: list[str], writes: str, node: str) -> tuple[dict[str, Any], str | None]:
    """Report, on a node, the installed code and what is wrong with the files there."""
    # Import the node's own module: functions that came pickled would describe the driver's code.
    from omniforcing.pipeline.cluster import connect as cluster

    return asdict(cluster.installed()), cluster.problem_with(reads, Path(writes), node)


def problem_with(reads: list[str], writes: Path, node: str) -> str | None:
    """Find what keeps this node from working on shared files.

    Args:
        reads: paths that must exist.
        writes: folder that must take a file and have ``ROOM`` bytes free.
        node: Ray's id of the node, which keeps the nodes' test files apart.

    Returns:
        The end of a sentence that begins with the node's name; None if all is well.
    """
    for path in reads:
        if not Path(path).exists():
            return (
                f"does not see {path}; "
                f"the data must lie on storage that all nodes share, under one path"
            )
    try:
        free = shutil.disk_usage(writes).free
        if free < ROOM:
            return (
                f"has {free / 1e6:.0f} MB free at {writes}, and {ROOM / 1e6:.0f} MB are the least; "
                f"free some space there"
            )
        probe = writes / f".probe-{node}"
        probe.write_bytes(bytes(2**20))
        probe.unlink()
    except OSError as error:
        return (
            f"cannot write into {writes} ({error.strerror}); "
            f"free some space there or mend its permissions"
        )
    return None
