"""A running stage: its config, folders, lock and MLflow run, and how it is started and resumed.

A stage works in ``.work/<preset>/<stage>/<fingerprint>`` and publishes whole folders only. The
fingerprint covers config, inputs and code: a killed stage continues its own work, and a changed
parameter starts from the beginning.
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

from omniforcing.core.config import project_root
from omniforcing.core.environment import data_root, die_with_parent, git_commit
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
from omniforcing.pipeline.cluster.local import process_count
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.declaration import DECLARATION, Declaration, read_declaration
from omniforcing.pipeline.generate import WRITE
from omniforcing.tracking.datasets import Record


@dataclass(frozen=True)
class Stage:
    """A running stage, as its ``run`` function sees it.

    Attributes:
        name: name of the stage.
        config: the whole configuration.
        root: the checkout.
        declaration: what the stage reads, writes and depends on.
        work: folder for unfinished work, kept when the process is killed.
        mlflow_run: the stage's MLflow run.
    """

    name: str
    config: Config
    root: Path
    declaration: Declaration
    work: Path
    mlflow_run: tracking.Run

    @property
    def folder(self) -> Path:
        """Output folder of the stage, ``data/<preset>/<folder>``."""
        return self.data_root / self.declaration.folder

    @property
    def data_root(self) -> Path:
        """Folder that holds ``data`` and ``.work``: the checkout, except in a job on a cluster."""
        return data_root(self.root)

    @property
    def run_id(self) -> str:
        """Id of the stage's MLflow run."""
        return self.mlflow_run.id

    def input(self, stage: str) -> Path:
        """Return the output folder of another stage.

        Args:
            stage: name of a stage that ``pipelines/stages.py`` lists as read by this one.

        Raises:
            OmniForcingError: if it is not listed there.
        """
        folder = read_declaration(stage, self.root, self.config.preset).folder
        if folder not in self.declaration.inputs:
            raise OmniForcingError(
                "pipeline.undeclared-input",
                f"stage {self.name} reads {folder}, which {DECLARATION} does not list; "
                f"add {stage!r} there and run `{WRITE}`",
            )
        return self.data_root / folder

    @contextlib.contextmanager
    def publish(self) -> Iterator[Path]:
        """Yield an empty folder that becomes the output folder on success.

        It gets a plain manifest if the body wrote none. With several workers, the folder of rank 0
        is kept and the others wait until it is published.
        """
        if self.is_writer:
            with atomic_dir(self.folder) as folder:
                yield folder
                if not (folder / MANIFEST).exists():
                    forget_origins(folder)
                    write_manifest(folder)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch)
        # A process that has not loaded torch is no worker of a group; do not load it for that.
        if "torch" in sys.modules:
            from omniforcing.core.distributed import barrier

            barrier()

    def write_metrics(self, values: Mapping[str, Any]) -> None:
        """Write the DVC metrics file ``<stage>.metrics.json`` and log its numbers to MLflow.

        Args:
            values: nested values, for json.
        """
        if self.is_writer:
            write_json(self._output_file("metrics.json"), values)
            self.mlflow_run.log_metrics(values)

    def write_curves(self, csv: Path) -> None:
        """Copy training curves to the DVC plot ``<stage>.curves.csv`` and log them to MLflow."""
        if self.is_writer:
            plot = self._output_file("curves.csv")
            atomic_write(plot, csv.read_bytes())
            self.mlflow_run.log_artifact(plot, "curves")

    def log_metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log the numbers among nested values to MLflow, at a training step if one is given."""
        if self.is_writer:
            self.mlflow_run.log_metrics(values, step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or the content of a folder, to MLflow below the artifact path ``folder``."""
        if self.is_writer:
            self.mlflow_run.log_artifact(path, folder)

    def log_table(self, path: Path, folder: str = "") -> None:
        """Log a JSON file with ``columns`` and ``data`` to MLflow as a table."""
        if self.is_writer:
            self.mlflow_run.log_table(path, folder)

    def log_dataset(self, records: Sequence[Record]) -> None:
        """Keep records as an evaluation dataset in MLflow, named after preset, stage and run."""
        if self.is_writer:
            name = f"{self.config.preset} {self.name} {self.mlflow_run.id[:8]}"
            self.mlflow_run.log_dataset(name, records)

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the outputs: the only process, or rank 0 of several."""
        if "torch" not in sys.modules:
            return True
        from omniforcing.core.distributed import rank

        return rank() == 0

    def _output_file(self, suffix: str) -> Path:
        return self.data_root / "data" / self.config.preset / f"{self.name}.{suffix}"


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file while the body runs; the kernel frees it however the process ends.

    Args:
        path: the lock file.
        what: subject of the error's sentence, such as ``stage codec of preset smoke``.

    Raises:
        OmniForcingError: naming the process that holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # filelock's fallback for file systems without locks is a file that outlives `kill -9` and
    # would block the stage for good: fail there instead.
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
    # OpenMP and BLAS read the variable when they load, which they have if torch is loaded.
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def record_duration(root: Path, preset: str, name: str, seconds: float) -> None:
    """Record how long a stage took, for the table that ``omniforcing run`` prints.

    Args:
        root: the checkout.
        preset: name of the preset.
        name: name of the stage.
        seconds: duration.
    """
    path = data_root(root) / ".work" / preset / "timings.json"
    timings = read_json(path) if path.is_file() else {}
    write_json(path, {**timings, name: {"seconds": round(seconds, 1), "ended": time.time()}})


def open_stage(name: str, config: Config, root: Path) -> Stage:
    """Open a stage's work folder and MLflow run; those of a killed process are continued.

    Raises:
        OmniForcingError: if there is no such stage, an input is missing, or MLflow does not answer.
    """
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
    """Import the module of a stage and call its ``run(stage)``.

    Only the processes that do the work import it, and with it torch: on a cluster the workers, not
    the process that launches them.

    Raises:
        OmniForcingError: if there is no such module, or it has no ``run(stage)``.
    """
    try:
        _run_module(stage)
    finally:
        # A worker's process ends here, and with it what waits for a store that does not answer.
        stage.mlflow_run.settle()


def _run_module(stage: Stage) -> None:
    spec = stage.declaration.spec
    if spec.body is None:
        importlib.import_module(f"omniforcing.pipeline.stages.{spec.name}").run(stage)
        return
    path = stage.root / spec.body
    module = runpy.run_path(str(path)) if path.is_file() else {}
    if "run" not in module:
        raise OmniForcingError(
            "pipeline.stage-without-body",
            f"{path}, the body of stage {spec.name}, has no function run(stage); "
            f"write it, or mend {DECLARATION}",
        )
    module["run"](stage)


def run_stage(
    name: str, config: Config, root: Path, body: Callable[[Stage], None] = run_body
) -> None:
    """Run one stage under its lock and within its MLflow run, and record its duration.

    Args:
        name: name of the stage.
        config: the configuration; a stage that trains does so on the cluster that it names.
        root: the checkout.
        body: does the stage's work.

    Raises:
        OmniForcingError: if the stage is already running, or cannot be opened or done.
    """
    _limit_threads(config.trainer.threads)
    began = time.monotonic()
    with exclusive(
        data_root(root) / ".work" / config.preset / name / "lock",
        f"stage {name} of preset {config.preset}",
    ):
        stage = open_stage(name, config, root)
        announce_run(stage.run_id)
        with tracking.closing(stage.mlflow_run):
            # Stages that do not train share out their shards themselves (``cluster.pool``).
            trains = stage.declaration.spec.trains(config)
            cluster = config.cluster if trains else ClusterConfig()
            processes = 1
            if trains and cluster.address is None:
                processes = process_count(config.trainer, getattr(config, name).optim.batch)
            launch(partial(body, stage), cluster, stage.work, processes)
    record_duration(root, config.preset, name, time.monotonic() - began)


def start_stage(name: str, overrides: Sequence[str] = (), preset: str | None = None) -> None:
    """Run one stage of this checkout in this process, or as a job on the configured cluster.

    Args:
        name: name of the stage.
        overrides: dotlist overrides of the configuration.
        preset: name of the preset; the tracked one if None.

    Raises:
        OmniForcingError: for a configuration, a cluster or inputs that the user can mend.
        SystemExit: with the exit code of a job that failed.
    """
    # A DVC that is killed does not stop its stages, which would go on holding locks and writing.
    if "DVC_STAGE" in os.environ:
        die_with_parent()
    root = project_root()
    config = load_config(list(overrides), root, preset)
    if not goes_to_cluster(name, config):
        run_stage(name, config, root)
    elif code := submit_stage(name, config, root, overrides):
        raise SystemExit(code)
