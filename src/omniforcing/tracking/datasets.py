"""MLflow's evaluation datasets: tables that its pages show record by record, tied to a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# MLflow would say that a person made what has expectations.
MEASURED = {"source_type": "CODE", "source_data": {}}
Record = Mapping[str, Mapping[str, Any]]


def keep_dataset(client: Any, run_id: str, name: str, records: Sequence[Record]) -> None:
    """Make an evaluation dataset of a run, or complete the one that it has.

    Args:
        client: an ``MlflowClient`` of the store that ``MLFLOW_TRACKING_URI`` names.
        run_id: the run, which gets the dataset as its input.
        name: name of the dataset; one that the run has already is completed.
        records: each with ``inputs``, by which MLflow tells records apart, and ``expectations``.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    own = client.search_datasets([experiment], filter_string=f"tags.run = '{run_id}'")
    dataset = next((kept for kept in own if kept.name == name), None)
    dataset = dataset or client.create_dataset(name, experiment, {"run": run_id})
    dataset.merge_records([{**record, "source": MEASURED} for record in records])
    known = {used.dataset.name for used in run.inputs.dataset_inputs}
    if name not in known:
        kept = client.get_dataset(dataset.dataset_id)
        source = json.dumps({"dataset_id": kept.dataset_id})
        entity = Dataset(
            kept.name,
            kept.digest,
            "mlflow_evaluation_dataset",
            source,
            kept.schema,
            kept.profile,
        )
        tag = InputTag("mlflow.data.context", "evaluation")
        client.log_inputs(run_id, [DatasetInput(entity, [tag])])
