"""Section ``cluster``: where the heavy stages run; no value of it changes a result."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omniforcing.core.config import Section, ranged


class Strategy(Enum):
    """Parallelism of a training: whole models in each worker, or shards of them."""

    ddp = "ddp"
    fsdp = "fsdp"
    hybrid = "hybrid"


@dataclass
class KubeRayConfig(Section):
    """Keys of a RayJob manifest for KubeRay, in addition to the workers."""

    namespace: str = "default"
    """Namespace of the RayJob."""
    image: str = "omniforcing:latest"
    """Image of head and workers."""
    volume_claim: str = "omniforcing"
    """Claim of the shared volume that is mounted at `data_root`."""
    memory: str = "32Gi"
    """Memory of a worker."""
    head_memory: str = "16Gi"
    """Memory of the head."""
    keep_minutes: int = ranged(10, at_least=0)
    """Minutes that a finished job's pods are kept."""


@dataclass
class ClusterConfig(Section):
    """Where the heavy stages run."""

    address: str | None = None
    """HOST:6379 of a Ray head, or `auto` for this machine's; null: no Ray, `trainer.processes`."""
    workers: int = ranged(1, at_least=1)
    """Processes that train together; they share each batch."""
    strategy: Strategy = Strategy.ddp
    """`ddp`: whole models in each worker; `fsdp`: shards over all; `hybrid`: over each group."""
    shard_size: int | None = ranged(None, at_least=1)
    """For `strategy: hybrid`: workers in a group; null: those of one node."""
    cpus: float = ranged(1.0, at_least=0)
    """CPUs per worker."""
    gpus: float = ranged(0.0, at_least=0)
    """GPUs per worker."""
    restarts: int = ranged(3, at_least=0)
    """Times that lost workers are replaced before the stage gives up."""
    jobs: str | None = None
    """Address of Ray's dashboard, to which stages are submitted as jobs; null: run them here."""
    data_root: str | None = None
    """Absolute folder of data/ and .work/, the same on every node; null: the checkout."""
    kuberay: KubeRayConfig = field(default_factory=KubeRayConfig)
    """What a RayJob manifest for KubeRay needs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.cpus + self.gpus > 0, "cpus", f"with gpus={self.gpus} one of them must be above 0"
        )
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            self.require(
                value < 1 or value == int(value), name, "above 1 it must be whole, as Ray has it"
            )
        self.require(
            self.shard_size is None or self.workers % self.shard_size == 0,
            "shard_size",
            f"it must divide workers={self.workers}",
        )
        self.require(
            self.jobs is None or self.jobs.startswith(("http://", "https://")),
            "jobs",
            "give the address of Ray's dashboard, such as http://127.0.0.1:8265",
        )
        self.require(
            self.data_root is None or Path(self.data_root).is_absolute(),
            "data_root",
            "it must be absolute, the same folder on every node",
        )

    @property
    def sharded(self) -> bool:
        """Whether no worker holds a whole model."""
        return self.address is not None and self.strategy is not Strategy.ddp
