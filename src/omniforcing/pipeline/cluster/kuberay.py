"""Build the RayJob manifest with which KubeRay runs a stage on Kubernetes.

``kubectl apply -f`` takes it. The volume claim must hold the checkout, which is mounted at
``cluster.data_root`` on every pod; the image must hold the packages of ``constraints.txt``. Fields
are those of KubeRay's API ray.io/v1 (``authOptions`` since KubeRay 1.5.1).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from omniforcing.core.config import ConfigError
from omniforcing.core.environment import DATA_ROOT_VARIABLE, JOB_VARIABLE
from omniforcing.pipeline.cluster.jobs import stage_command
from omniforcing.pipeline.config import Config

VOLUME = "project"


def manifest(name: str, config: Config, overrides: Sequence[str]) -> dict[str, Any]:
    """Build the RayJob that runs a stage on ``cluster.workers`` pods and one head.

    Args:
        name: the stage.
        config: with ``cluster.data_root`` set.
        overrides: of the configuration, passed on to the stage.

    Returns:
        The manifest, as it is written to YAML.

    Raises:
        ConfigError: if ``cluster.data_root`` is not set.
    """
    cluster, kube = config.cluster, config.cluster.kuberay
    if cluster.data_root is None:
        raise ConfigError(
            "config.missing-value",
            "cluster.data_root is not set: "
            "give the path at which pods mount the volume with the checkout",
        )
    command = shlex.join(stage_command(name, config.preset, overrides))
    script = f"cd {shlex.quote(cluster.data_root)} && exec {command}"
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
            "entrypoint": f"sh -c {shlex.quote(script)}",
            "submissionMode": "K8sJobMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60 * kube.keep_minutes,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                # With CPUs of its own, the head would be given a worker to run.
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                    "template": head,
                },
                "workerGroupSpecs": [workers],
            },
        },
    }


def _pod(config: Config, name: str, limits: dict[str, Any]) -> dict[str, Any]:
    """Build a pod template: one container, the volume mounted at ``cluster.data_root``."""
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
