"""What every pipeline stage shares: its config, folders, lock, MLflow run, clock and way to end.

A stage works in ``.work/<preset>/<stage>/<fingerprint>`` and publishes whole folders only. The fingerprint covers config,
inputs and code, so a killed stage continues exactly its own work, and a changed parameter begins anew.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from omniforcing.core.config import data_root, project_root
from omniforcing.core.environment import die_with_parent, git_commit
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import (
    MANIFEST,
    atomic_dir,
    atomic_write,
    forget_origins,
    read_json,
    write_json,
    write_manifest,
)
from omniforcing.pipeline import tracking
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.jobs import announce_run, goes_to_cluster, submit_stage
from omniforcing.pipeline.cluster.launch import launch
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.declaration import DECLARATION, Declaration, read_declaration
from omniforcing.pipeline.generate import WRITE


@dataclass(frozen=True)
class Stage:
    """A running stage, as its ``run`` function sees it."""

    name: str
    config: Config
    root: Path
    declaration: Declaration
    work: Path
    tracked: tracking.Run

    @property
    def folder(self) -> Path:
        """Where the stage's output appears: ``data/<preset>/<folder>``."""
        return self.data_root / self.declaration.folder

    @property
    def data_root(self) -> Path:
        """What ``data`` and ``.work`` lie below: the checkout, except in a job on a cluster."""
        return data_root(self.root)

    @property
    def run_id(self) -> str:
        """The MLflow run."""
        return self.tracked.id

    def input(self, stage: str) -> Path:
        """The output folder of another stage.

        Raises:
            OmniForcingError: if ``pipelines/stages.py`` does not list it as read by this stage.
        """
        folder = read_declaration(stage, self.root, self.config.preset).folder
        if folder not in self.declaration.inputs:
            raise OmniForcingError(
                "pipeline.undeclared-input",
                f"stage {self.name} reads {folder}, which {DECLARATION} does not list; add {stage!r} there and run `{WRITE}`",
            )
        return self.data_root / folder

    @contextlib.contextmanager
    def publish(self) -> Iterator[Path]:
        """Yield an empty folder that becomes ``folder`` on success; it gets a plain manifest if the body wrote none.

        Of several workers the first one's folder is kept, and all wait until it is there.
        """
        if self.first:
            with atomic_dir(self.folder) as folder:
                yield folder
                if not (folder / MANIFEST).exists():
                    forget_origins(folder)
                    write_manifest(folder)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch)
        if "torch" in sys.modules:
            from omniforcing.core.distributed import barrier

            barrier()

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Write the stage's DVC metrics file, ``data/<preset>/<stage>.metrics.json``, and log the numbers to MLflow."""
        if self.first:
            write_json(self._beside("metrics.json"), values)
            self.tracked.metrics(values)

    def curves(self, csv: Path) -> None:
        """Keep a training curve as the stage's DVC plot, ``data/<preset>/<stage>.curves.csv``, and in MLflow."""
        if self.first:
            kept = self._beside("curves.csv")
            atomic_write(kept, csv.read_bytes())
            self.tracked.artifact(kept, "curves")

    def log_metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers to the MLflow run."""
        if self.first:
            self.tracked.metrics(values, step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a file or a folder's content to the MLflow run."""
        if self.first:
            self.tracked.artifact(path, folder)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes: the only one, or the first of several workers."""
        if "torch" not in sys.modules:
            return True
        from omniforcing.core.distributed import rank

        return rank() == 0

    def _beside(self, suffix: str) -> Path:
        return self.data_root / "data" / self.config.preset / f"{self.name}.{suffix}"


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file while the body runs; the kernel frees it however the process ends.

    Raises:
        OmniForcingError: naming the process that holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Where the kernel has no locks, a mark on the disk would outlive kill -9: refuse instead.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise OmniForcingError(
            "pipeline.already-running",
            f"{what} is already running (process {path.read_text()}); wait for it or stop it",
        ) from error
    with lock:
        path.write_text(str(os.getpid()))
        yield


def _limit_threads(count: int) -> None:
    # Read by OpenMP and BLAS when they load; torch may have loaded before.
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def record_minutes(root: Path, preset: str, name: str, seconds: float) -> None:
    """Remember how long a stage took, for the table of ``omniforcing run``."""
    path = data_root(root) / ".work" / preset / "timings.json"
    timings = read_json(path) if path.is_file() else {}
    write_json(path, {**timings, name: {"seconds": round(seconds, 1), "ended": time.time()}})


def open_stage(name: str, config: Config, root: Path) -> Stage:
    """The stage with its work folder and its MLflow run, continued if an earlier process was killed."""
    declared = read_declaration(name, root, config.preset)
    fingerprint = declared.fingerprint(config, root)
    work = data_root(root) / ".work" / config.preset / name / fingerprint[:16]
    work.mkdir(parents=True, exist_ok=True)
    tags = {
        "stage": name,
        "preset": config.preset,
        "git_commit": git_commit(root),
        "fingerprint": fingerprint,
    }
    tags |= {
        f"input.{Path(path).name}": digest for path, digest in declared.input_digests(root).items()
    }
    if "DVC_EXP_NAME" in os.environ:
        tags["experiment"] = os.environ["DVC_EXP_NAME"]
    client = tracking.connect(root)
    run = tracking.open_run(client, name, work / "run.json", tags, declared.config_values(config))
    return Stage(name, config, root, declared, work, run)


def run_body(stage: Stage) -> None:
    """Load the module of a stage and run it.

    Only the process that does a stage's work loads the module, and with it torch: on a cluster each
    worker does, and the process that launched them does not.

    Raises:
        OmniForcingError: if there is no such module, or it has no ``run(stage)``.
    """
    spec = stage.declaration.spec
    if spec.body is None:
        importlib.import_module(f"omniforcing.pipeline.stages.{spec.name}").run(stage)
        return
    path = stage.root / spec.body
    names = runpy.run_path(str(path)) if path.is_file() else {}
    if "run" not in names:
        raise OmniForcingError(
            "pipeline.stage-without-body",
            f"{path}, the body of stage {spec.name}, has no function run(stage); "
            f"write it, or mend {DECLARATION}",
        )
    names["run"](stage)


def run_stage(
    name: str, config: Config, root: Path, body: Callable[[Stage], None] = run_body
) -> None:
    """Run one stage under its lock and within its MLflow run, and record its minutes.

    Args:
        name: of the stage.
        config: what it runs with; a stage that trains does so on the cluster that is named there.
        root: the checkout.
        body: does the stage's work.
    """
    _limit_threads(config.trainer.threads)
    began = time.monotonic()
    with exclusive(
        data_root(root) / ".work" / config.preset / name / "lock",
        f"stage {name} of preset {config.preset}",
    ):
        stage = open_stage(name, config, root)
        announce_run(stage.run_id)
        with tracking.closing(stage.tracked):
            trains = stage.declaration.spec.trains(config)
            cluster = config.cluster if trains else ClusterConfig()
            launch(partial(body, stage), cluster, stage.work)
    record_minutes(root, config.preset, name, time.monotonic() - began)


def start_stage(name: str, overrides: Sequence[str] = (), preset: str | None = None) -> None:
    """Run one stage of this checkout here, or as a job on the cluster that takes it.

    Raises:
        OmniForcingError: for a configuration, a cluster or inputs that the user can mend.
        SystemExit: with the exit code of a job that failed.
    """
    if "DVC_STAGE" in os.environ:
        die_with_parent()
    root = project_root()
    config = load_config(list(overrides), root, preset)
    if not goes_to_cluster(name, config):
        run_stage(name, config, root)
    elif code := submit_stage(name, config, root, overrides):
        raise SystemExit(code)
