"""Each release of LTX-2 from its published files to a stream, on tiny random weights."""

import shutil
from pathlib import Path

import av
import pytest
import torch
from mlflow import MlflowClient

from benchmarks.rehearsal import PRESETS, STREAM_SECONDS, rehearse
from omniforcing.core.config import project_root
from omniforcing.core.files import read_json
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.names import generation
from omniforcing.pipeline.declaration import stage_names
from omniforcing.pipeline.tracking import EXPERIMENT
from omniforcing.streaming.artifact import Artifact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("release", PRESETS)
def test_a_release_goes_from_its_published_files_to_a_stream(
    release: str, tmp_path: Path, database: Path
) -> None:
    torch.set_num_threads(1)
    store = shutil.copy(database, tmp_path / "mlflow.db")
    # LTX-2.5 by its diffusion decoder: its other one is that of 2.3.
    steps = [row.step for row in rehearse(release, tmp_path, diffusion=release == "2.5")]
    assert steps == ["publish", "import", *stage_names(project_root()), "page"]
    data = tmp_path / "data" / PRESETS[release]
    for stage in ("bidirectional_dmd", "causal_ode", "self_forcing"):
        assert read_json(data / f"{stage}.metrics.json")["steps"] == 2
    models = read_json(data / "evaluation" / "metrics.json")["models"]
    assert {"real", "codec", "teacher", "self_forcing"} <= set(models)

    artifact = Artifact.open(data / "artifact")
    rate = 24_000 if release == "2.0" else 48_000
    assert artifact.settings.sample_rate == rate
    assert artifact.settings.video_look_ahead > 0  # no release's decoder is causal
    student, teacher = map(open_checkpoint, (artifact.folder, data / "teacher"))
    assert generation(student.entries) == generation(teacher.entries) == release
    assert {entry.dtype for entry in student.entries.values()} == {"BF16"}  # as the preset says
    # In fp32: six small updates of so few steps are lost in bf16.
    before, trained = dict(teacher.tensors()), open_checkpoint(data / "self_forcing")
    learnt = [bool((tensor != before[n].float()).any()) for n, tensor in trained.tensors()]
    assert sum(learnt) > 0.5 * len(learnt)

    with av.open(str(artifact.folder / "sample.mp4")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 1 + 24 * STREAM_SECONDS
    with av.open(str(artifact.folder / "sample.mp4")) as clip:
        sound = clip.streams.audio[0]
        assert sound.rate == rate
        samples = sum(frame.samples for frame in clip.decode(sound))
    # AAC's frames have 1024 samples, and its first one is the encoder's delay.
    assert 0 <= samples - rate * STREAM_SECONDS <= 2 * 1024

    client = MlflowClient(f"sqlite:///{store}")
    (experiment,) = (e for e in client.search_experiments() if e.name == EXPERIMENT)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(f"pipeline {PRESETS[release]}")
    assert set(runs) == set(stage_names(project_root()))
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    losses = client.get_metric_history(runs["self_forcing"].info.run_id, "loss_video")
    assert sorted(loss.step for loss in losses) == [0, 1]
    assert client.search_logged_models([experiment.experiment_id])
