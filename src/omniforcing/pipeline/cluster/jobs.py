"""A stage as a Ray job on a named cluster: submitted with this checkout's code, its log streamed, its exit code ours.

Code travels as the job's working folder (``.rayignore`` says what stays); data does not: it lies below ``cluster.data_root``,
the same absolute path on every node. A submitter that dies leaves its job running, and the next one follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omniforcing.core.config import digest
from omniforcing.core.environment import (
    CLUSTER_VARIABLE,
    COMMIT_VARIABLE,
    DATA_ROOT_VARIABLE,
    JOB_VARIABLE,
    PARENT_VARIABLE,
    git_commit,
)
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, write_json
from omniforcing.pipeline import tracking
from omniforcing.pipeline.cluster.connect import ClusterError, answers, refused_token, unreachable
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.declaration import read_declaration

# Set in a job: its stage runs there and is not submitted again.
# What a job runs: stages that take long on many clips or train; the others are quick, or trained for pocket alone.
HEAVY = frozenset(
    {
        "shards",
        "latents",
        "teacher",
        "bidirectional_dmd",
        "trajectories",
        "causal_ode",
        "self_forcing",
    }
)
RUN_LINE = "mlflow run: "
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
PAUSE = 1.0  # seconds between two looks at a job


def goes_to_cluster(name: str, config: Config) -> bool:
    """Whether a stage is to be submitted: it is heavy, jobs have an address, and this is not the job itself."""
    return config.cluster.jobs is not None and name in HEAVY and JOB_VARIABLE not in os.environ


def submit_stage(name: str, config: Config, root: Path, overrides: Sequence[str]) -> int:
    """Run a stage as a job, or follow the one that an earlier call began, and print its log.

    Returns:
        The job's exit code: 0 if it succeeded, never 0 if not.

    Raises:
        ClusterError: if nothing answers at ``cluster.jobs``, the token is refused, or the output is not to be seen here.
    """
    declared = read_declaration(name, root, config.preset)
    place = str(config.cluster.jobs)
    client = _client(place)
    memory = Path(config.cluster.data_root or root) / ".work" / config.preset / name / "job.json"
    ordered = digest(
        {"words": [name, *overrides], "place": place, "code": declared.work_digest(root)}
    )
    job = _under_way(client, memory, ordered)
    if job is None:
        job = _submit(client, name, config, root, overrides)
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {"job": job, "ordered": ordered})
        print(f"job {job} at {place}: stage {name}, preset {config.preset}", flush=True)
    else:
        print(f"job {job} at {place} is under way from before: following it", flush=True)
    run = _follow(client, job)
    details = client.get_job_info(job)
    code = _exit_code(details)
    where = f"; MLflow run {run} at {tracking.tracking_uri(root)}" if run else ""
    print(f"job {job} {details.status.value.lower()}, exit code {code}{where}", flush=True)
    if code == 0 and not (root / declared.folder).exists():
        raise ClusterError(
            "cluster.no-shared-storage",
            f"job {job} succeeded, but {root / declared.folder} is not there; cluster.data_root must be this checkout, on "
            f"storage that all nodes share, or its data folder a link to the one below cluster.data_root",
        )
    return code


def _client(place: str) -> Any:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    nobody = unreachable("cluster.jobs", place)
    try:
        return JobSubmissionClient(place)
    except AuthenticationError as error:
        # Ray wants a token before it looks whether anybody is there.
        url = urlsplit(place)
        there = answers(str(url.hostname), url.port or (443 if url.scheme == "https" else 80))
        raise (refused_token(place) if there else nobody) from error
    except (ConnectionError, RuntimeError) as error:
        if "401" in str(error) or "403" in str(error):
            raise refused_token(place) from error
        raise nobody from error


def _under_way(client: Any, memory: Path, ordered: str) -> str | None:
    """The job that ``memory`` names, if it does the same and has not ended."""
    found = read_json(memory) if memory.is_file() else {}
    if found.get("ordered") != ordered:
        return None
    try:
        return None if client.get_job_status(found["job"]).value in _ENDED else str(found["job"])
    except RuntimeError:
        return None  # a head that was started anew knows nothing of it


def _submit(client: Any, name: str, config: Config, root: Path, overrides: Sequence[str]) -> str:
    entrypoint = shlex.join(stage_command(name, config.preset, overrides))
    environment = {"working_dir": str(root), "env_vars": job_variables(config, root)}
    try:
        return str(
            client.submit_job(
                entrypoint=entrypoint, runtime_env=environment, metadata={"stage": name}
            )
        )
    except RuntimeError as error:
        if "413" in str(error):
            raise ClusterError(
                "cluster.large-job",
                f"{root} is too large to travel with a job; list what is not code in .rayignore, as data/ is",
            ) from error
        raise ClusterError(
            "cluster.refused-job",
            f"the cluster at {config.cluster.jobs} took no job: {str(error).strip().splitlines()[-1]}",
        ) from error


def job_variables(config: Config, root: Path) -> dict[str, str]:
    """The environment of a job: our code, our data, our tracking store, and whose run this one belongs to."""
    forwarded = (CLUSTER_VARIABLE, PARENT_VARIABLE, "DVC_EXP_NAME")
    return {
        **{name: os.environ[name] for name in forwarded if name in os.environ},
        JOB_VARIABLE: "1",
        DATA_ROOT_VARIABLE: str(config.cluster.data_root or root),
        "PYTHONPATH": "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/src",
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(Path(config.cluster.data_root or root)),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        COMMIT_VARIABLE: git_commit(root),
    }


def _follow(client: Any, job: str) -> str | None:
    """Print a job's log until it ends, and stop it if we are stopped; returns its MLflow run."""
    log = _Log()
    try:
        while client.get_job_status(job).value not in _ENDED:
            # Connections break in hours of training: look again, and go on behind what was printed.
            with contextlib.suppress(OSError, RuntimeError):
                asyncio.run(log.stream(client, job))
            time.sleep(PAUSE)
    except (KeyboardInterrupt, SystemExit):
        client.stop_job(job)
        raise
    log.write(client.get_job_logs(job))
    return log.run


class _Log:
    """A job's log as far as it was printed."""

    def __init__(self) -> None:
        self.seen = ""

    async def stream(self, client: Any, job: str) -> None:
        text = ""
        async for part in client.tail_job_logs(job):
            text += part
            if len(text) > len(self.seen):
                self.write(text)

    def write(self, text: str) -> None:
        """Print what ``text``, the log from its beginning, has beyond what was printed."""
        sys.stdout.write(text[len(self.seen) :])
        sys.stdout.flush()
        self.seen = max(self.seen, text, key=len)

    @property
    def run(self) -> str | None:
        found = re.findall(rf"^{RUN_LINE}(\w+)", self.seen, re.MULTILINE)
        return found[-1] if found else None


def _exit_code(details: Any) -> int:
    if details.status.value == "SUCCEEDED":
        return 0
    return int(details.driver_exit_code or 0) or 1


def announce_run(run_id: str, environment: Mapping[str, str] = os.environ) -> None:
    """In a job, tell who follows its log which MLflow run it is."""
    if JOB_VARIABLE in environment:
        print(f"{RUN_LINE}{run_id}", flush=True)


def submit_named(name: str, config: Config, root: Path, overrides: Sequence[str]) -> int:
    """Run a stage as a job, heavy or not; returns the job's exit code.

    Raises:
        OmniForcingError: if no cluster is named that takes jobs, and as ``submit_stage``.
    """
    if config.cluster.jobs is None:
        raise OmniForcingError(
            "config.missing-value",
            "cluster.jobs is not set: name a cluster that takes jobs, such as cluster=ray",
        )
    return submit_stage(name, config, root, overrides)


def stage_command(name: str, preset: str, overrides: Sequence[str]) -> list[str]:
    """The command that runs a stage on a cluster, where the package need not be installed."""
    return ["python", "-m", "omniforcing", "stage", name, "--preset", preset, *overrides]
