"""A stage as a RayJob of KubeRay: the manifest that ``kubectl apply -f`` takes, from the config alone.

    python -m omniforcing.pipeline.cluster.kuberay self_forcing cluster=kuberay preset=ltx2 > rayjob.yaml

The volume claim holds the checkout, mounted at ``cluster.data_root`` on every pod; the image holds the packages of
``constraints.txt``. Fields are those of KubeRay's API ray.io/v1 (``authOptions`` since its 1.5.1).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omniforcing.core.config import ConfigError
from omniforcing.core.environment import DATA_ROOT_VARIABLE, JOB_VARIABLE
from omniforcing.pipeline.cluster.jobs import command_of_a_stage
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.declaration import read_declaration

VOLUME = "project"


def manifest(name: str, config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    """The RayJob that runs a stage on ``cluster.workers`` pods beside a head without work of its own.

    Raises:
        ConfigError: without ``cluster.data_root``.
    """
    cluster, kube = config.cluster, config.cluster.kuberay
    if cluster.data_root is None:
        raise ConfigError(
            "config.missing-value",
            "cluster.data_root is not set: give the path at which pods mount the volume with the checkout",
        )
    command = ["python", f"pipelines/{name}.py", *overrides]
    limits: dict[str, Any] = {"cpu": f"{cluster.cpus:g}", "memory": kube.memory}
    if cluster.gpus:
        limits["nvidia.com/gpu"] = f"{cluster.gpus:g}"
    workers = {
        "groupName": "workers",
        **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), cluster.workers),
        "rayStartParams": {},
        "template": _pod(config, "ray-worker", limits),
    }
    head = _pod(config, "ray-head", {"cpu": "2", "memory": kube.head_memory})
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": f"omniforcing-{name.replace('_', '-')}", "namespace": kube.namespace},
        "spec": {
            "entrypoint": f"sh -c {shlex.quote(f'cd {shlex.quote(cluster.data_root)} && exec {shlex.join(command)}')}",
            "submissionMode": "K8sJobMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60 * kube.keep_minutes,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                # The head hands out work; with CPUs of its own it would be given some.
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                    "template": head,
                },
                "workerGroupSpecs": [workers],
            },
        },
    }


def _pod(config: Config, name: str, limits: dict[str, Any]) -> dict[str, Any]:
    cluster, kube = config.cluster, config.cluster.kuberay
    variables = {
        JOB_VARIABLE: "1",
        DATA_ROOT_VARIABLE: str(cluster.data_root),
        "PYTHONPATH": f"{cluster.data_root}/src",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    container = {
        "name": name,
        "image": kube.image,
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "resources": {"limits": limits, "requests": limits},
        "volumeMounts": [{"name": VOLUME, "mountPath": str(cluster.data_root)}],
    }
    claim = {"name": VOLUME, "persistentVolumeClaim": {"claimName": kube.volume_claim}}
    return {"spec": {"containers": [container], "volumes": [claim]}}


def _show(name: str, config: Config, root: Path, overrides: list[str]) -> None:
    """Print the manifest as YAML."""
    from yaml import safe_dump

    read_declaration(name, root, config.preset)
    print(safe_dump(manifest(name, config, overrides), sort_keys=False), end="")


if __name__ == "__main__":
    command_of_a_stage(__doc__, _show)
