"""Run a stage as a Ray job: submit this checkout's code, stream the log, return the exit code.

Code is uploaded as the job's working folder, without the paths in ``.rayignore``. Data is not: it
lies below ``cluster.data_root``, the same absolute path on every node. A submitter that dies leaves
its job running; the same command run again follows that job.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
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
from omniforcing.pipeline.cluster.connect import (
    ClusterError,
    named_address_only,
    refused_token,
    unreachable,
)
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.declaration import read_declaration
from omniforcing.tracking.store import answers

# Stages that are submitted as jobs: they train, or take long on many clips. The others are quick,
# or train for preset pocket alone.
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
PAUSE = 1.0  # seconds between two requests for a job's status
ASKED = 10.0  # seconds that a dashboard may take to say its version
PATIENCE = 60.0  # seconds that a dashboard may fail to answer while a job runs
Answer = TypeVar("Answer")


def goes_to_cluster(name: str, config: Config) -> bool:
    """Whether to submit a stage: it is heavy, ``cluster.jobs`` is set, and this is not its job."""
    return config.cluster.jobs is not None and name in HEAVY and JOB_VARIABLE not in os.environ


def submit_stage(name: str, config: Config, root: Path, overrides: Sequence[str]) -> int:
    """Run a stage as a job and print its log; follow an earlier call's job that still runs.

    Args:
        name: the stage.
        config: with ``cluster.jobs`` set.
        root: the checkout, which is uploaded.
        overrides: of the configuration, as given to the command.

    Returns:
        The job's exit code; 0 only if it succeeded.

    Raises:
        ClusterError: if nothing answers at ``cluster.jobs``, the token or the job is refused, or
            the job's output is not visible here.
    """
    declared = read_declaration(name, root, config.preset)
    place = str(config.cluster.jobs)
    client = _client(place)
    memory = Path(config.cluster.data_root or root) / ".work" / config.preset / name / "job.json"
    # Identifies the work: a job left from other code, overrides or cluster is not followed.
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
    run = follow(client, job, place)
    details = _patiently(lambda: client.get_job_info(job), place, job)
    code = _exit_code(details)
    where = f"; MLflow run {run} at {tracking.tracking_uri(root)}" if run else ""
    print(f"job {job} {details.status.value.lower()}, exit code {code}{where}", flush=True)
    if code == 0 and not (root / declared.folder).exists():
        raise ClusterError(
            "cluster.no-shared-storage",
            f"job {job} succeeded, but {root / declared.folder} is not there; "
            f"cluster.data_root must be this checkout, on storage that all nodes share, "
            f"or its data folder a link to the one below cluster.data_root",
        )
    return code


def _client(place: str) -> Any:
    """Connect to the dashboard at ``place`` and at no other, whatever the environment says.

    Raises:
        ClusterError: if nothing answers there, or no Ray dashboard, or the token is refused.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    nobody = unreachable("cluster.jobs", place)
    _check_dashboard(place)
    try:
        with named_address_only():
            return JobSubmissionClient(place)
    except AuthenticationError as error:
        # Ray asks for a token before it connects, so this error comes without a cluster too.
        there = answers(str(urlsplit(place).hostname), _port(place))
        raise (refused_token(place) if there else nobody) from error
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
        if "401" in str(error) or "403" in str(error):
            raise refused_token(place) from error
        raise nobody from error


def _check_dashboard(place: str) -> None:
    """Refuse what is no Ray dashboard in good health; Ray itself would wait for it without end.

    Raises:
        ClusterError: naming the address and what it answered.
    """
    import requests

    unfit = (
        f"cluster.jobs={place} is no Ray dashboard that takes jobs ({{}}); "
        f"give the address that `ray start --head` prints, or start its head again"
    )
    try:
        answer = requests.get(f"{place.rstrip('/')}/api/version", timeout=ASKED)
    except requests.Timeout as error:
        said = f"it did not answer within {ASKED:g} seconds"
        raise ClusterError("cluster.not-ray", unfit.format(said)) from error
    except requests.RequestException as error:
        if answers(str(urlsplit(place).hostname), _port(place)):
            said = "it does not speak HTTP" if place.startswith("http:") else "TLS failed there"
            raise ClusterError("cluster.not-ray", unfit.format(said)) from error
        raise unreachable("cluster.jobs", place) from error
    if answer.status_code in (401, 403):
        return  # it asks for the token, which the client sends
    if answer.status_code != 200:
        raise ClusterError("cluster.not-ray", unfit.format(f"it answers HTTP {answer.status_code}"))
    try:
        str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        said = "its answer has no version of Ray"
        raise ClusterError("cluster.not-ray", unfit.format(said)) from error


def _port(place: str) -> int:
    url = urlsplit(place)
    return url.port or (443 if url.scheme == "https" else 80)


def _patiently(ask: Callable[[], Answer], place: str, job: str) -> Answer:
    """Ask a dashboard about a running job, again if it does not answer for a while.

    Raises:
        ClusterError: if it does not answer for ``PATIENCE`` seconds; the job may go on there.
    """
    given_up = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            if time.monotonic() > given_up:
                said = " ".join(str(error).split())[:200]
                raise ClusterError(
                    "cluster.lost",
                    f"the cluster at {place} has not answered for {PATIENCE:g} seconds ({said}); "
                    f"job {job} may go on there: run the same command again to follow it",
                ) from error
        time.sleep(PAUSE)


def _under_way(client: Any, memory: Path, ordered: str) -> str | None:
    """Return the id of a job that already does this work, if one runs.

    Args:
        client: Ray's job client.
        memory: file that an earlier call wrote.
        ordered: digest of the work.

    Returns:
        None if there is no such file, it is of other work, or the job has ended or is unknown.
    """
    found = read_json(memory) if memory.is_file() else {}
    if found.get("ordered") != ordered:
        return None
    try:
        return None if client.get_job_status(found["job"]).value in _ENDED else str(found["job"])
    except RuntimeError as error:
        if "404" not in str(error):
            raise ClusterError(
                "cluster.lost",
                f"the cluster does not say whether job {found['job']} still runs "
                f"({' '.join(str(error).split())[:200]}); run the same command again",
            ) from error
        return None  # the head was restarted since, and its jobs ended with it


def _submit(client: Any, name: str, config: Config, root: Path, overrides: Sequence[str]) -> str:
    entrypoint = shlex.join(stage_command(name, config.preset, overrides))
    environment = {"working_dir": str(root), "env_vars": job_variables(config, root)}
    try:
        return str(
            client.submit_job(
                entrypoint=entrypoint, runtime_env=environment, metadata={"stage": name}
            )
        )
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
        if "413" in str(error):
            raise ClusterError(
                "cluster.large-job",
                f"{root} is too large to travel with a job; "
                f"list what is not code in .rayignore, as data/ is",
            ) from error
        raise ClusterError(
            "cluster.refused-job",
            f"the cluster at {config.cluster.jobs} took no job: "
            f"{str(error).strip().splitlines()[-1]}",
        ) from error


def job_variables(config: Config, root: Path) -> dict[str, str]:
    """Build a job's environment: where code, data and tracking store are, and the parent run.

    The commit is among them because the uploaded folder has no ``.git``.
    """
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


def follow(client: Any, job: str, place: str) -> str | None:
    """Print a job's log until the job ends; stop the job if this process is interrupted.

    Args:
        client: Ray's job client.
        job: id of the job.
        place: address of the dashboard, for errors.

    Returns:
        The id of the job's MLflow run; None if the log names none.

    Raises:
        ClusterError: if the dashboard does not answer for ``PATIENCE`` seconds.
    """
    log = _Log()
    try:
        while _patiently(lambda: client.get_job_status(job), place, job).value not in _ENDED:
            # A connection rarely lasts for hours of training. Connect again: the log is sent from
            # its beginning, and ``_Log`` prints only the new part.
            with contextlib.suppress(OSError, RuntimeError):
                asyncio.run(log.stream(client, job))
            time.sleep(PAUSE)
    except (KeyboardInterrupt, SystemExit):
        client.stop_job(job)
        raise
    # The last lines may have come after the stream ended.
    log.write(_patiently(lambda: client.get_job_logs(job), place, job))
    return log.run


class _Log:
    """Prints a job's log once, however often it is sent.

    Attributes:
        seen: the part that is printed.
    """

    def __init__(self) -> None:
        self.seen = ""

    async def stream(self, client: Any, job: str) -> None:
        """Print a running job's log until the job ends or the connection breaks."""
        text = ""
        async for part in client.tail_job_logs(job):
            text += part
            if len(text) > len(self.seen):
                self.write(text)

    def write(self, text: str) -> None:
        """Print the new part of ``text``, the log from its beginning."""
        sys.stdout.write(text[len(self.seen) :])
        sys.stdout.flush()
        self.seen = max(self.seen, text, key=len)

    @property
    def run(self) -> str | None:
        """Id of the last MLflow run that the log announces."""
        found = re.findall(rf"^{RUN_LINE}(\w+)", self.seen, re.MULTILINE)
        return found[-1] if found else None


def _exit_code(details: Any) -> int:
    if details.status.value == "SUCCEEDED":
        return 0
    # A job that was stopped may have no exit code.
    return int(details.driver_exit_code or 0) or 1


def announce_run(run_id: str, environment: Mapping[str, str] = os.environ) -> None:
    """In a job, print the MLflow run's id, which the submitter reads from the log."""
    if JOB_VARIABLE in environment:
        print(f"{RUN_LINE}{run_id}", flush=True)


def submit_named(name: str, config: Config, root: Path, overrides: Sequence[str]) -> int:
    """Run any stage as a job, heavy or not, and return the job's exit code.

    Raises:
        OmniForcingError: if ``cluster.jobs`` is not set, and as ``submit_stage``.
    """
    if config.cluster.jobs is None:
        raise OmniForcingError(
            "config.missing-value",
            "cluster.jobs is not set: name a cluster that takes jobs, such as cluster=ray",
        )
    return submit_stage(name, config, root, overrides)


def stage_command(name: str, preset: str, overrides: Sequence[str]) -> list[str]:
    """Build the command that runs a stage on a node, where the package may not be installed."""
    return ["python", "-m", "omniforcing", "stage", name, "--preset", preset, *overrides]
