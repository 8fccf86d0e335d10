"""The MLflow helper: parents, params, metrics, commits, the first meeting of an empty database."""

import subprocess
import sys
from pathlib import Path

import pytest

from omniforcing.core.environment import COMMIT_VARIABLE, PARENT_VARIABLE, git_commit
from omniforcing.pipeline import tracking
from tests.support.refusals import refuses


def test_nested_values_are_flat_and_long_ones_cut(project: Path) -> None:
    client = tracking.connect(project)
    run = tracking.open_run(
        client, "r", project / "run.json", {"a": "b"}, {"x": {"y": 1, "z": "w" * 9000}}
    )
    run.log_metrics({"loss": {"video": 0.5, "note": "text", "flag": True}}, step=3)
    logged = client.get_run(run.id)
    assert logged.data.params["x.y"] == "1"
    assert len(logged.data.params["x.z"]) == 500
    assert logged.data.metrics == {"loss.video": 0.5}


def test_a_run_is_the_child_of_the_parent_named_by_either_variable(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tracking.connect(project)
    parent = tracking.open_run(client, "parent", project / "parent.json", {}, {})
    for variable in (PARENT_VARIABLE, "MLFLOW_RUN_ID"):
        monkeypatch.delenv(PARENT_VARIABLE, raising=False)
        monkeypatch.setenv(variable, parent.id)
        child = tracking.open_run(client, "child", project / f"{variable}.json", {}, {})
        assert child.id != parent.id
        assert client.get_run(child.id).data.tags["mlflow.parentRunId"] == parent.id


def test_artifacts_of_files_and_folders_lie_in_the_project(project: Path) -> None:
    run = tracking.open_run(tracking.connect(project), "r", project / "run.json", {}, {})
    (project / "media").mkdir()
    (project / "media" / "a.txt").write_text("a")
    run.log_artifact(project / "media", "samples")
    run.log_artifact(project / "media" / "a.txt")
    assert len(list((project / "mlruns").rglob("a.txt"))) == 2


@pytest.mark.slow
def test_two_processes_may_meet_an_empty_database(project: Path) -> None:
    (project / "mlflow.db").unlink()
    code = (
        "from pathlib import Path; from omniforcing.pipeline.tracking import connect; "
        "connect(Path.cwd())"
    )
    pair = [
        subprocess.Popen([sys.executable, "-c", code], cwd=project, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [process.wait() for process in pair] == [0, 0]


def test_a_store_that_cannot_be_opened_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (project / "mlruns").as_uri())
    with refuses("pipeline.no-mlflow", "MLFLOW_TRACKING_URI"):
        tracking.connect(project)


def test_commit_says_when_the_checkout_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    assert git_commit(tmp_path) == "unknown"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "a").write_text("1")
    for command in (["git", "init", "-q"], ["git", "add", "a"], [*git, "commit", "-qm", "first"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    clean = git_commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{clean}-dirty"
    monkeypatch.setenv(COMMIT_VARIABLE, clean)
    assert git_commit(tmp_path) == clean
