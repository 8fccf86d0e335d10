"""Environment of a process: our environment variables, the checkout's commit, its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

# Folder that holds data, .work and mlflow.db instead of the checkout: a job on a cluster runs from
# a copy of the code.
DATA_ROOT_VARIABLE = "OMNIFORCING_DATA_ROOT"
# Name of a file in conf/cluster, where no command line names one.
CLUSTER_VARIABLE = "OMNIFORCING_CLUSTER"
# MLflow run of the pipeline, parent of the runs of its stages.
PARENT_VARIABLE = "OMNIFORCING_PARENT_RUN"
# Commit at the start of a pipeline run: DVC writes the tracked dvc.lock as it goes.
COMMIT_VARIABLE = "OMNIFORCING_GIT_COMMIT"
# Set in a job on a cluster, so that it runs its stage there and submits none.
JOB_VARIABLE = "OMNIFORCING_JOB"
# Secret that clients of the server must send.
TOKEN_VARIABLE = "OMNIFORCING_TOKEN"
# Set by a shell that completes a command line of ours.
COMPLETION_VARIABLE = "_OMNIFORCING_COMPLETE"


def git_commit(root: Path) -> str:
    """Commit of the checkout, with ``-dirty`` if tracked files differ; ``unknown`` without git."""
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except FileNotFoundError:  # a machine without git
        return "unknown"
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"


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
