"""Page of environment variables: ours from ``core/environment.py``, and those of others we heed."""

from __future__ import annotations

import ast
import inspect

from omniforcing.core import environment

# Variables of other programs that change what a command here does.
OTHERS = {
    "MLFLOW_TRACKING_URI": "Where runs go; `mlflow.db` in the checkout if unset.",
    "MLFLOW_RUN_ID": "Set by `mlflow run`: the run under which the stages' runs are put.",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "Seconds of one try of a request; 5, uploads 120, if unset.",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "Further tries of a request; 1 if unset.",
    "RAY_ADDRESS": "Ignored, like `RAY_API_SERVER_ADDRESS`: `cluster.*` names the cluster.",
    "RAY_AUTH_MODE": "`token` for a cluster that asks for one; set by `make` where it is missing.",
    "RAY_AUTH_TOKEN": "The cluster's token, if it is not in `~/.ray/auth_token`.",
    "CUDA_VISIBLE_DEVICES": "Empty: everything on the CPU, also where there is a GPU.",
    "OMP_NUM_THREADS": "Threads of a process on the CPU; `trainer.threads` decides in a stage.",
}


def page() -> str:
    """List the variables, each with what it is for."""
    lines = ["# Environment variables", "", "## Ours", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {about} |" for name, about in ours().items()]
    lines += ["", "They are read in `src/omniforcing/core/environment.py` and where that is used."]
    lines += ["", "## Of other programs", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {about} |" for name, about in OTHERS.items()]
    return "\n".join(lines)


def ours() -> dict[str, str]:
    """Our variables, each with the comment in front of its constant."""
    source = inspect.getsource(environment)
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            comment: list[str] = []
            line = node.lineno - 2
            while lines[line].startswith("# "):
                comment.insert(0, lines[line].removeprefix("# "))
                line -= 1
            found[str(node.value.value)] = " ".join(comment)
    return found
