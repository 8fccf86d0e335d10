"""MLflow: one parent run per pipeline run, one child run per stage, continued by the same stage after a kill.

Runs are addressed by id through the client, never through MLflow's global state, so that ``mlflow run``, Lightning and
the export stage cannot write into one another's runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from omniforcing.core.config import data_root, flatten
from omniforcing.core.environment import PARENT_VARIABLE
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, write_json

EXPERIMENT = "omniforcing"
_LONGEST_PARAM = 500


def tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the sqlite file in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{data_root(root) / 'mlflow.db'}"


class Run:
    """One MLflow run; pickled, it is the same run in another process."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.id = run_id

    def __getstate__(self) -> dict[str, str]:
        return {"id": self.id, "uri": self._client.tracking_uri}

    def __setstate__(self, state: dict[str, str]) -> None:
        self._client, self.id, self._uri = None, state["id"], state["uri"]

    @property
    def client(self) -> Any:
        """The store's client, made on first use."""
        if self._client is None:
            from mlflow import MlflowClient

            self._client = MlflowClient(self._uri)
        return self._client

    def params(self, values: Mapping[str, Any]) -> None:
        """Log nested parameters under dotted names; long values are cut."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in flatten(values).items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.id, params=params[start : start + 100])

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log the numbers among nested values under dotted names."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = {
            k: float(v)
            for k, v in flatten(values).items()
            if isinstance(v, int | float) and not isinstance(v, bool)
        }
        metrics = [Metric(key, value, now, step or 0) for key, value in numbers.items()]
        for start in range(0, len(metrics), 500):
            self.client.log_batch(self.id, metrics=metrics[start : start + 500])

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or the content of a folder, below ``folder`` of the run's artifacts."""
        log = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
        log(self.id, str(path), folder or None)

    def close(self, status: str = "FINISHED") -> None:
        """Set the final status: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.id, status)


def connect(root: Path) -> Any:
    """An ``MlflowClient`` of this project's store, which is created on first use.

    Raises:
        OmniForcingError: if the store does not answer.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ["MLFLOW_TRACKING_URI"] = uri = tracking_uri(root)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for talkative in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # Two processes that both meet an empty database would both create its tables, and one would fail.
    lock = data_root(root) / ".work" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            client = MlflowClient(uri)
            if client.get_experiment_by_name(EXPERIMENT) is None:
                local = (data_root(root) / "mlruns").as_uri() if uri.startswith("sqlite:") else None
                client.create_experiment(EXPERIMENT, artifact_location=local)
        except MlflowException as error:
            raise OmniForcingError(
                "pipeline.no-mlflow",
                f"MLflow at {uri} does not answer ({error}); check MLFLOW_TRACKING_URI",
            ) from error
    return client


def _unfinished(client: Any, memory: Path) -> str | None:
    """The run that ``memory`` names, if the store still has it and it did not finish."""
    from mlflow.exceptions import MlflowException

    if not memory.is_file():
        return None
    run_id = str(read_json(memory)["run_id"])
    try:
        info = client.get_run(run_id).info
    except MlflowException:
        return None
    return run_id if info.status != "FINISHED" and info.lifecycle_stage == "active" else None


def open_run(
    client: Any, name: str, memory: Path, tags: Mapping[str, str], params: Mapping[str, Any]
) -> Run:
    """Continue the run remembered in ``memory``, or begin one as a child of the pipeline's parent run if there is one."""
    # `mlflow run` names its own run in MLFLOW_RUN_ID; left there, every stage would share and overwrite that one.
    parent = os.environ.pop("MLFLOW_RUN_ID", None)
    parent = os.environ.get(PARENT_VARIABLE, parent)
    run_id = _unfinished(client, memory)
    if run_id:
        client.update_run(run_id, status="RUNNING")
        return Run(client, run_id)
    if parent:
        experiment = client.get_run(parent).info.experiment_id
        tags = {**tags, "mlflow.parentRunId": parent}
    else:
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    run = Run(client, client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)
    run.params(params)
    write_json(memory, {"run_id": run.id})
    return run


@contextmanager
def closing(run: Run) -> Iterator[Run]:
    """Close the run with the status that fits how the body ends."""
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        run.close("KILLED")
        raise
    except BaseException:
        run.close("FAILED")
        raise
    run.close()
