"""Exported models in an MLflow store: small evaluations by the real writers, and their runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from omniforcing.core.files import read_json, write_json
from omniforcing.core.pair import Media, Pair
from omniforcing.evaluation.config import EvaluateConfig
from omniforcing.evaluation.evaluate import EvaluationInputs, evaluate
from omniforcing.evaluation.nearest import TrainingClips
from omniforcing.evaluation.report import write_report
from omniforcing.pipeline.tracking import connect
from omniforcing.pocket.observe import Clips
from omniforcing.pocket.synthetic import make_clip
from omniforcing.tracking.description import NOTE
from omniforcing.tracking.registry import Registry
from omniforcing.tracking.store import tracking_uri

CLIPS, SECONDS, SIZE = 6, 2, 48
STUDENT = "self_forcing"
# MLflow runs this file to log the model; nothing in these tests calls it.
MODEL = """
import mlflow
from mlflow.pyfunc import PythonModel

class Model(PythonModel):
    def predict(self, model_input: list[str]) -> list[str]:
        return model_input

mlflow.models.set_model(Model())
"""


def open_registry(root: Path) -> Registry:
    """The registry of a checkout's store, which is made if there is none."""
    return Registry(tracking_uri(root), connect(root))


def _real(seed: int, count: int) -> Clips:
    made = [make_clip(seed, index, SECONDS, SIZE, SIZE) for index in range(count)]
    media = [Pair(clip.frames, clip.samples) for clip in made]
    return Clips(
        [clip.caption for clip in made],
        lambda chosen=range(count): iter([media[index] for index in chosen]),
    )


def _sampler(late: int) -> Callable[[list[str], list[int]], Iterator[Media]]:
    """A model that makes clips of the world with sound ``late`` samples too late."""

    def sample(captions: Sequence[str], seeds: Sequence[int]) -> Iterator[Media]:
        for _, seed in zip(captions, seeds, strict=True):
            clip = make_clip(seed % 2**31, 0, SECONDS, SIZE, SIZE)
            sound = np.roll(clip.samples, late, 1)
            yield Pair(clip.frames, sound)

    return sample


def write_evaluations(folder: Path, late: Mapping[str, int]) -> dict[str, Path]:
    """Evaluate students whose sound is late, all at once, and give each an evaluation of its own.

    Args:
        folder: an empty folder.
        late: for each student, by how many samples (16 kHz).
    """
    settings = EvaluateConfig(clips=CLIPS, seeds=1, page_clips=1, drift_clips=0)
    models = {name: _sampler(samples) for name, samples in late.items()}
    work, together = folder / "sets", folder / "together"
    clips = _real(31, CLIPS)
    inputs = EvaluationInputs(clips, lambda clip: clip, models, {}, work, settings, seed=0)
    found = evaluate(inputs, TrainingClips.collect(_real(30, 11), folder / "train"))
    about = {"preset": "pocket", "seed": 0, "seeds": 1, "tolerance_ms": 80.0}
    together.mkdir()
    metrics = write_report(together, work, found, about | {"heldout_clips": CLIPS}, {}, {})
    table = read_json(together / "clips.json")
    for name in late:
        rows = [[STUDENT, *row[1:]] for row in table["data"] if row[0] == name]
        student = {STUDENT: metrics["models"][name]}
        write_json(folder / name / "metrics.json", {**metrics, "models": student})
        write_json(folder / name / "clips.json", {**table, "data": rows})
    return {name: folder / name for name in late}


@contextmanager
def edited(path: Path) -> Iterator[dict[str, Any]]:
    """Content of a JSON file, which is written back as the body leaves it."""
    content = read_json(path)
    yield content
    write_json(path, content)


def change_settings(evaluation: Path, **values: Any) -> None:
    """Change settings that an evaluation says it was made with."""
    with edited(evaluation / "metrics.json") as metrics:
        metrics["settings"] |= values


def save_model(folder: Path, artifact: Path) -> Path:
    """Save an artifact as an MLflow model, whose folder is returned."""
    import mlflow

    code = folder / "model.py"
    code.write_text(MODEL)
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=str(code),
        artifacts={"artifact": str(artifact)},
        pip_requirements=["torch"],
    )
    return folder / "model"


class Champions:
    """A registered model whose alias ``champion`` moves at every call of ``promote``.

    Args:
        folder: where the store and its files lie.
        database: an empty one, which is copied.
    """

    name, alias = "tiny", "models:/tiny@champion"

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.store = folder, f"sqlite:///{folder / 'mlflow.db'}"
        shutil.copy(database, folder / "mlflow.db")
        self._client = Registry.at(self.store).client
        self._client.create_registered_model(self.name)

    def promote(self, artifact: Path, damaged: bool = False) -> str:
        """Register an artifact, make it champion, and return what the version is called.

        Args:
            artifact: its folder, which is copied.
            damaged: whether a file of the copy is altered.
        """
        place = self.folder / str(len(list(self.folder.iterdir())))
        place.mkdir()
        model = save_model(place, artifact)
        if damaged:
            settings = next(model.rglob("streaming.json"))
            settings.write_text(settings.read_text() + " ")
        version = self._client.create_model_version(self.name, str(model)).version
        self._client.set_registered_model_alias(self.name, "champion", version)
        return f"models:/{self.name}/{version}"


def log_export(client: Any, evaluation: Path | None, model: Path) -> str:
    """Log a saved model and its evaluation as stage export does; returns the run's id."""
    experiment = client.get_experiment_by_name("omniforcing").experiment_id
    tags = {"stage": "export", "preset": "pocket", "git_commit": "c" * 40}
    run_id: str = client.create_run(experiment, tags=tags).info.run_id
    for name in ("metrics.json", "clips.json") if evaluation else ():
        client.log_artifact(run_id, str(Path(str(evaluation), name)), "evaluation")
    described = {NOTE: f"# Model of {run_id}"}
    logged = client.create_logged_model(
        experiment, name="model", source_run_id=run_id, tags=described
    )
    client.log_model_artifacts(logged.model_id, str(model))
    client.finalize_logged_model(logged.model_id, "READY")
    client.set_terminated(run_id, "FINISHED")
    return run_id
