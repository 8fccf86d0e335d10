"""``omniforcing run --keep``: the pipeline's artifact, up to date, goes into the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omniforcing.core.environment import COMMIT_VARIABLE, PARENT_VARIABLE, git_commit
from omniforcing.core.files import read_json
from omniforcing.pipeline.generate import write_pipelines
from omniforcing.pipeline.runner import run_pipeline
from omniforcing.pocket import foundation, student
from tests.support.checkout import commit

pytestmark = pytest.mark.slow

STAGES = """
from omniforcing.pipeline.declaration import StageSpec

STAGES = (
    StageSpec("evaluate", "Measure.", keys=("seed",), body="pipelines/evaluate.py"),
    StageSpec(
        "export",
        "Write.",
        reads=("evaluate",),
        keys=("export",),
        writes="artifact",
        body="pipelines/export.py",
    ),
)
"""
BODY = """
import torch
from safetensors.torch import save_file
from omniforcing.core.files import write_manifest

def run(stage):
    with stage.publish() as folder:
        for name, value in (("codec", 1.0), ("text", 2.0), ("transformer", 3.0)):
            (folder / name).mkdir()
            save_file({"w": torch.full((3,), value)}, folder / name / "model.safetensors")
        write_manifest(folder)
    stage.write_metrics({"figure": 0.5})
"""


def test_the_artifact_of_this_commit_is_kept_with_its_record(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (COMMIT_VARIABLE, PARENT_VARIABLE):  # the run sets them for its children
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setattr(foundation, "KEPT", repository / "assets")
    for folder, value in (("codec", 1.0), ("codec/text", 2.0)):
        (repository / "assets" / folder).mkdir(parents=True)
        save_file(
            {"w": torch.full((3,), value)}, repository / "assets" / folder / "model.safetensors"
        )
    (repository / "pipelines" / "stages.py").write_text(STAGES)
    for name in ("evaluate", "export"):
        (repository / "pipelines" / f"{name}.py").write_text(BODY)
    for name in ("pocket", "smoke", "mine"):
        (repository / "conf" / "preset" / f"{name}.yaml").write_text("export: {}\n")
    with (repository / "conf" / "config.yaml").open("a") as file:
        file.write("export:\n  precision: fp32\n")
    write_pipelines(repository)
    commit(repository)
    made_by = git_commit(repository)
    run_pipeline(repository, "pocket", keep_student=True)
    record = student.check_student()
    assert record["git_commit"] == made_by and "dirty" not in made_by
    assert record["metrics"]["evaluate"] == {"figure": 0.5}
    assert record["config"]["export"]["precision"] == "fp32"
    kept = read_json(repository / "assets" / "student.json")
    assert set(kept["files"]) == {
        f"{n}/model.safetensors" for n in ("codec", "text", "transformer")
    }
    assert not (repository / "assets" / "student" / "codec").exists()
