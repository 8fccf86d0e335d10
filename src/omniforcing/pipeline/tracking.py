"""MLflow tracking: one parent run per pipeline run, one child run per stage.

A stage that was killed continues its run. Runs are addressed by id through the client, never
through MLflow's global state, so that ``mlflow run``, Lightning and the export stage cannot write
into one another's runs.

A store that does not answer stops a stage before it begins. Once a stage runs, nothing of it is
lost to a store that falls silent: it goes on, what it logs is kept and sent when the store answers
again, and what is left at the end is told.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from omniforcing.core.config import flatten
from omniforcing.core.environment import PARENT_VARIABLE, decline_telemetry
from omniforcing.core.files import read_json, write_json
from omniforcing.tracking import store
from omniforcing.tracking.datasets import Record, keep_dataset
from omniforcing.tracking.store import tracking_uri

EXPERIMENT = "omniforcing"
_MAX_PARAM_CHARS = 500  # older servers refuse longer values
_MAX_PARAMS, _MAX_METRICS = 100, 500  # of one request; servers refuse more than 100 and 1000
_TABLES_TAG = "mlflow.loggedArtifacts"  # of a run, by which MLflow finds its tables
PAUSE = 60.0  # seconds before a store that did not answer is asked again

__all__ = ["EXPERIMENT", "Run", "closing", "connect", "open_run", "tracking_uri"]


class Run:
    """One MLflow run; it can be pickled and used in another process.

    Args:
        client: an ``MlflowClient`` of the store.
        run_id: id of the run.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._uri = str(client.tracking_uri)
        self.id = run_id
        self._outbox: list[tuple[str, Callable[[], None]]] = []
        self._lost: list[str] = []
        self._asked_again_at: float | None = None  # None while the store answers

    # A client holds database connections, which cannot be pickled: its URI travels instead.
    def __getstate__(self) -> dict[str, str]:
        return {"id": self.id, "uri": self._uri}

    def __setstate__(self, state: dict[str, str]) -> None:
        self._client, self.id, self._uri = None, state["id"], state["uri"]
        self._outbox, self._lost, self._asked_again_at = [], [], None

    @property
    def client(self) -> Any:
        """``MlflowClient`` of the store, created on first use."""
        if self._client is None:
            from mlflow import MlflowClient

            self._client = MlflowClient(self._uri)
        return self._client

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log nested parameters under dotted names; values are cut after 500 characters."""
        from mlflow.entities import Param

        flat = flatten(values)
        params = [Param(key, str(value)[:_MAX_PARAM_CHARS]) for key, value in flat.items()]
        for start in range(0, len(params), _MAX_PARAMS):
            self.client.log_batch(self.id, params=params[start : start + _MAX_PARAMS])

    def log_metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log the numbers among nested values under dotted names.

        Args:
            values: nested values; what is no number, or a bool, is left out.
            step: training step, 0 if None.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(key, float(value), now, step or 0)
            for key, value in flatten(values).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        for start in range(0, len(metrics), _MAX_METRICS):
            batch = metrics[start : start + _MAX_METRICS]
            what = f"metrics of step {step}" if step is not None else "metrics"
            self._send(what, partial(self.client.log_batch, self.id, metrics=batch))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or the content of a folder, below the artifact path ``folder``."""
        self._send(str(path), partial(self._upload, Path(path), folder))

    def log_table(self, path: Path, folder: str = "") -> None:
        """Log a JSON file with ``columns`` and ``data``, which MLflow shows as a table."""
        self.log_artifact(path, folder)
        name = f"{folder}/{path.name}" if folder else path.name
        tables = json.dumps([{"path": name, "type": "table"}])
        self._send(f"table {name}", partial(self.client.set_tag, self.id, _TABLES_TAG, tables))

    def log_dataset(self, name: str, records: Sequence[Record]) -> None:
        """Keep records as an evaluation dataset of the run; arguments of ``keep_dataset``."""
        keep = partial(keep_dataset, self.client, self.id, name, records)
        self._send(f"dataset {name}", keep)

    def close(self, status: str = "FINISHED") -> None:
        """Set the final status: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._send(f"status {status}", partial(self.client.set_terminated, self.id, status))
        self.settle()

    def settle(self) -> None:
        """Try once more to send what waits, and tell what could not be sent."""
        if self._outbox:
            self._flush()
        left = [*self._lost, *(what for what, _ in self._outbox)]
        if left:
            listed = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
            self._say(f"run {self.id} lacks {listed}; the stage's own files in data/ are complete")
        self._lost, self._outbox = [], []

    def _upload(self, path: Path, folder: str) -> None:
        if store.is_server(self._uri):
            self.client.get_run(self.id)  # quickly shows a server that does not answer
        log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        with store.bounded(self._uri, store.UPLOAD):
            log(self.id, str(path), folder or None)

    def _send(self, what: str, request: Callable[[], None]) -> None:
        """Send a request after those that wait; keep it if the store does not answer."""
        self._outbox.append((what, request))
        if self._asked_again_at is None or time.monotonic() >= self._asked_again_at:
            self._flush()

    def _flush(self) -> None:
        """Send what waits, in order, until the store does not answer."""
        while self._outbox:
            what, request = self._outbox[0]
            try:
                with store.bounded(self._uri):
                    request()
            except store.faults() as error:
                if isinstance(error, OSError) and not store.is_server(self._uri):
                    raise  # of this machine's own disk
                said = " ".join(str(error).split())[:200]
                if isinstance(error, FileNotFoundError) or not store.may_pass(error):
                    # Sent again it would be refused again, and hold up all that follows.
                    if not self._lost:
                        self._say(f"{what} is refused ({said}); the stage goes on")
                    self._lost.append(what)
                else:
                    if self._asked_again_at is None:
                        self._say(
                            f"no answer ({said}); the stage goes on, and what it logs is kept and "
                            f"sent when MLflow answers again"
                        )
                    self._asked_again_at = time.monotonic() + PAUSE
                    return
            self._outbox.pop(0)
        if self._asked_again_at is not None:
            self._asked_again_at = None
            self._say("answers again; what was kept is sent")

    def _say(self, sentence: str) -> None:
        print(f"MLflow at {store.shown(self._uri)}: {sentence}", file=sys.stderr, flush=True)


def connect(root: Path) -> Any:
    """Return an ``MlflowClient`` of the project's store; the first call creates the store.

    Args:
        root: the checkout.

    Raises:
        OmniForcingError: if the store does not answer.
    """
    decline_telemetry()
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ["MLFLOW_TRACKING_URI"] = uri = tracking_uri(root)
    from mlflow import MlflowClient

    for verbose in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    # Two processes that both open an empty database would both create its tables: one would fail.
    folder = store.store_folder(root)
    lock = folder / ".work" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    store.check_host(uri)
    with FileLock(lock), store.answering(uri):
        client = MlflowClient(uri)
        if client.get_experiment_by_name(EXPERIMENT) is None:
            local = (folder / "mlruns").as_uri() if uri.startswith("sqlite") else None
            client.create_experiment(EXPERIMENT, artifact_location=local)
    return client


def _unfinished(client: Any, record: Path) -> str | None:
    """Return the id of the recorded run if the store still has it and it did not finish.

    A finished run is never continued: the stage ran to its end, and this is a new attempt.
    """
    from mlflow.exceptions import MlflowException

    if not record.is_file():
        return None
    run_id = str(read_json(record)["run_id"])
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if store.may_pass(error):
            raise  # a run that the store cannot look up now is not a run that is gone
        return None
    return run_id if info.status != "FINISHED" and info.lifecycle_stage == "active" else None


def open_run(
    client: Any, name: str, record: Path, tags: Mapping[str, str], params: Mapping[str, Any]
) -> Run:
    """Continue the recorded run, or start one as a child of the pipeline's parent run.

    Args:
        client: an ``MlflowClient`` of the store.
        name: name of the run.
        record: json file with the id of the run; written when one is started.
        tags: tags of a new run.
        params: nested parameters of a new run.

    Raises:
        OmniForcingError: if the store does not answer.
    """
    with store.answering(client.tracking_uri):
        return _open_run(client, name, record, tags, params)


def _open_run(
    client: Any, name: str, record: Path, tags: Mapping[str, str], params: Mapping[str, Any]
) -> Run:
    # `mlflow run` names its own run in MLFLOW_RUN_ID. MLflow would log into that one from every
    # stage, and each would overwrite the last: take the variable away and use it as the parent.
    mlflow_parent = os.environ.pop("MLFLOW_RUN_ID", None)
    parent = os.environ.get(PARENT_VARIABLE, mlflow_parent)
    run_id = _unfinished(client, record)
    if run_id:
        client.update_run(run_id, status="RUNNING")
        return Run(client, run_id)
    if parent:
        experiment = client.get_run(parent).info.experiment_id
        tags = {**tags, "mlflow.parentRunId": parent}
    else:
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    created = client.create_run(experiment, run_name=name, tags=dict(tags))
    run = Run(client, created.info.run_id)
    run.log_params(params)
    # Recorded last: a process killed before leaves a run without parameters, never continued.
    write_json(record, {"run_id": run.id})
    return run


@contextmanager
def closing(run: Run) -> Iterator[Run]:
    """Close the run when the body ends: ``FINISHED``, ``FAILED`` after an error, else ``KILLED``.

    ``KILLED`` stands for Ctrl-C and for ``SystemExit``. A process that gets SIGKILL closes nothing:
    its run stays ``RUNNING`` and is continued like the others.
    """
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        run.close("KILLED")
        raise
    except BaseException:
        run.close("FAILED")
        raise
    run.close()
