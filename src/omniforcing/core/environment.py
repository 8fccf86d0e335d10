"""Environment of a process: our environment variables, the checkout's commit, its parent."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

DATA_ROOT_VARIABLE = "OMNIFORCING_DATA_ROOT"
CLUSTER_VARIABLE = "OMNIFORCING_CLUSTER"
PARENT_VARIABLE = "OMNIFORCING_PARENT_RUN"
COMMIT_VARIABLE = "OMNIFORCING_GIT_COMMIT"
JOB_VARIABLE = "OMNIFORCING_JOB"
TOKEN_VARIABLE = "OMNIFORCING_TOKEN"
ARTIFACT_VARIABLE = "OMNIFORCING_ARTIFACT"
FORKS_VARIABLE = "OMNIFORCING_FORKS"
FORKED_VARIABLE = "OMNIFORCING_FORKED"
COMPLETION_VARIABLE = "_OMNIFORCING_COMPLETE"
# What each is for; docs/reference/environment.md is made of it.
OURS = {
    DATA_ROOT_VARIABLE: (
        "Folder that holds data, .work and mlflow.db instead of the checkout: a job on a "
        "cluster runs from a copy of the code."
    ),
    CLUSTER_VARIABLE: "Name of a file in conf/cluster, where no command line names one.",
    PARENT_VARIABLE: "MLflow run of the pipeline, parent of the runs of its stages.",
    COMMIT_VARIABLE: (
        "Commit at the start of a pipeline run: DVC writes the tracked dvc.lock as it goes."
    ),
    JOB_VARIABLE: "Set in a job on a cluster, so that it runs its stage there and submits none.",
    TOKEN_VARIABLE: "Secret that clients of the server must send.",
    ARTIFACT_VARIABLE: "What `--artifact` is where a command line does not say.",
    FORKS_VARIABLE: (
        "Socket of the process that has loaded the libraries and forks itself for the stages of a "
        "pipeline run."
    ),
    FORKED_VARIABLE: "Id of the process that it forked, and that socket.",
    COMPLETION_VARIABLE: "Set by a shell that completes a command line of ours.",
}
# Variables of other programs that change what a command here does.
OTHERS = {
    "MLFLOW_TRACKING_URI": "Where runs go; `mlflow.db` in the checkout if unset.",
    "MLFLOW_RUN_ID": "Set by `mlflow run`: the run under which the stages' runs are put.",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "Seconds of one try of a request; 5, uploads 120, if unset.",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "Further tries of a request; 1 if unset.",
    "RAY_ADDRESS": "Ignored, like `RAY_API_SERVER_ADDRESS`: `cluster.*` names the cluster.",
    "RAY_AUTH_MODE": "`token` for a cluster that asks for one; set by `make` where it is missing.",
    "RAY_AUTH_TOKEN": "The cluster's token, if it is not in `~/.ray/auth_token`.",
    "HF_ENDPOINT": "Address of another Hub than https://huggingface.co.",
    "HF_TOKEN": "Token for the Hub, if `hf auth login` left none.",
    "HF_HOME": "Folder of the Hub's cache and token; `~/.cache/huggingface` if unset.",
    "HF_HUB_OFFLINE": "`1`: use only what the Hub's cache holds, and never ask the Hub.",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "Collector to which streams send a span a block, over HTTP.",
    "OTEL_EXPORTER_OTLP_HEADERS": "Headers of those requests, such as a token.",
    "CUDA_VISIBLE_DEVICES": "Empty: everything on the CPU, also where there is a GPU.",
    "OMP_NUM_THREADS": "Threads of a process on the CPU; `trainer.threads` decides in a stage.",
}


def data_root(root: Path) -> Path:
    """Return the folder of ``data``, ``.work`` and the tracking store.

    That is the checkout, or the folder that OMNIFORCING_DATA_ROOT names: a job on a cluster runs
    from a copy of the code, and its data must not lie in that copy.
    """
    return Path(os.environ.get(DATA_ROOT_VARIABLE, root))


def decline_telemetry() -> None:
    """Keep MLflow from reporting how it is used; it decides when it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def git_commit(root: Path) -> str:
    """Commit of the checkout, with ``-dirty`` if tracked files differ.

    Without git, or where it does not answer, that is ``unknown``, and one line of stderr says why.
    """
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE]
    fault = git_fault(root)
    if fault is None:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if answer.returncode == 0:
            return answer.stdout.strip()
        fault = "it has no commit yet"
    tell_once(f"runs of {root} are recorded without a commit: {fault}")
    return "unknown"


def git_fault(root: Path) -> str | None:
    """Say why git has no commit of a folder: not installed, not a checkout, or refused.

    Returns:
        The end of a sentence; None if the folder is a git checkout that git reads.
    """
    command = ["git", "rev-parse", "--show-toplevel"]
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:
        return "git is not installed"
    if "dubious ownership" in answer.stderr:
        return (
            f"git refuses a folder that belongs to another user; "
            f"`git config --global --add safe.directory {shlex.quote(str(root))}` allows it"
        )
    # A folder unpacked within another repository is not at that one's commit.
    top = answer.stdout.removesuffix("\n")
    if answer.returncode or Path(top).resolve() != root.resolve():
        return "it is no git checkout"
    return None


@cache
def tell_once(sentence: str) -> None:
    """Print a sentence to stderr, once in a process."""
    print(sentence, file=sys.stderr, flush=True)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies (Linux).

    Otherwise ``kill -9`` of DVC would leave a stage running, and the next ``dvc repro`` would start
    a second one.

    Args:
        parent: process id of the parent; if it is dead already, end this process now.
    """
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
