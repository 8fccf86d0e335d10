"""The MLflow helper: parents, params, metrics, commits, the first meeting of an empty database."""

import contextlib
import pickle
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omniforcing.core.environment import COMMIT_VARIABLE, PARENT_VARIABLE, git_commit
from omniforcing.core.errors import OmniForcingError
from omniforcing.evaluation.measures.tables import clip_records
from omniforcing.pipeline import tracking
from omniforcing.pipeline.runner import call_python
from omniforcing.tracking import store as tracking_store
from tests.support.answering import answering, black_hole
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


def test_a_table_is_found_by_mlflow_and_logged_once(project: Path) -> None:
    client = tracking.connect(project)
    run = tracking.open_run(client, "r", project / "run.json", {}, {})
    table = project / "clips.json"
    table.write_text('{"columns": ["clip", "motion"], "data": [["0", 1.5]]}')
    for _ in range(2):  # a stage that was killed logs it again
        run.log_table(table, "evaluation")
    experiment = client.get_run(run.id).info.experiment_id
    found = client.load_table(experiment, "evaluation/clips.json", [run.id])
    assert found.to_dict("records") == [{"clip": 0, "motion": 1.5}]


def test_a_table_of_clips_is_an_evaluation_dataset_of_its_run(project: Path) -> None:
    client = tracking.connect(project)
    run = tracking.open_run(client, "r", project / "run.json", {}, {})
    columns = ["set", "clip", "caption", "seconds", "motion", "loudness", "video"]
    rows = [["real", "0", "a red ball", 4.0, 1.5, None, "clips/0.mp4"]]
    rows.append(["real", "1", "a 'blue' ball", 4.0, 2.0, -20.0, None])
    artifacts = f"runs:/{run.id}/evaluation"
    records = clip_records({"columns": columns, "data": rows}, artifacts)
    for _ in range(2):  # a stage that was killed logs it again
        run.log_dataset("it's pocket", records)
    (dataset,) = client.search_datasets([client.get_run(run.id).info.experiment_id])
    assert dataset.name == "it's pocket" and dataset.tags["run"] == run.id
    kept = {record["inputs"]["clip"]: record for record in dataset.to_df().to_dict("records")}
    assert kept["0"]["inputs"] == dict(zip(columns[:4], rows[0][:4], strict=True))
    assert kept["0"]["source_type"] == "CODE"
    assert kept["0"]["expectations"] == {
        "motion": 1.5,
        "video": f"runs:/{run.id}/evaluation/clips/0.mp4",
    }
    assert kept["1"]["expectations"] == {"motion": 2.0, "loudness": -20.0}
    (used,) = client.get_run(run.id).inputs.dataset_inputs
    assert used.dataset.name == "it's pocket" and dataset.dataset_id in used.dataset.source


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
    with refuses("tracking.no-mlflow", "MLFLOW_TRACKING_URI"):
        tracking.connect(project)


@pytest.mark.parametrize(
    "name",
    [
        "my%20project",
        "100%",
        "wow?",
        "a#b",
        "with space",
        "it's",
        'a"b',
        "ümläut",
        "a&b=c;d",
        "{x}",
    ],
)
def test_a_checkout_of_any_name_keeps_its_runs(
    project: Path, database: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project / "around" / name
    root.mkdir(parents=True)
    shutil.copy(database, root / "mlflow.db")
    monkeypatch.chdir(root)
    run = tracking.open_run(tracking.connect(root), "r", root / "run.json", {}, {"a": 1})
    (root / "a.txt").write_text("a")
    run.log_artifact(root / "a.txt", "samples")
    run.close()
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as opened:
        assert opened.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    assert len(list((root / "mlruns").rglob("a.txt"))) == 1
    assert list((project / "around").iterdir()) == [root]
    again = pickle.loads(pickle.dumps(run))
    assert again.client.get_run(run.id).data.params == {"a": "1"}


@pytest.mark.parametrize("kept", ["standalone/tmp1a2b", "tmp1a2b"])
def test_a_temporary_copy_of_dvc_logs_to_the_checkout_that_it_was_copied_from(
    project: Path, kept: str
) -> None:
    copy = project / ".dvc" / "tmp" / "exps" / kept
    copy.mkdir(parents=True)
    run = tracking.open_run(tracking.connect(copy), "r", copy / "run.json", {}, {})
    run.log_artifact(Path(__file__))
    shutil.rmtree(copy)
    assert tracking.tracking_uri(project) == f"sqlite:///{project / 'mlflow.db'}"
    assert tracking.connect(project).get_run(run.id).info.status == "RUNNING"
    assert len(list((project / "mlruns").rglob(Path(__file__).name))) == 1


def test_a_server_that_refuses_is_told_soon_and_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status in (500, 503):
        with answering(status) as server:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
            with refuses("tracking.no-mlflow", server.url, "MLFLOW_TRACKING_URI"):
                tracking.connect(project)
            assert 1 <= len(server.asked) <= 4
    # Nobody there, and a database of which nobody is there.
    for address in ("http://127.0.0.1:1", "postgresql://me:secret@127.0.0.1:1/runs"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(OmniForcingError) as caught:
            tracking.connect(project)
        assert caught.value.code == "tracking.no-mlflow"
        assert "127.0.0.1:1" in str(caught.value) and "secret" not in str(caught.value)


def test_a_server_that_never_answers_is_told_with_a_sign_of_life(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking_store, "SILENCE", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with black_hole() as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        with refuses("tracking.no-mlflow", url):
            tracking.connect(project)
    assert f"waiting for MLflow at {url}" in capsys.readouterr().err
    assert tracking_store.REQUEST * 2 + tracking_store.SILENCE <= 15


class Store:
    """Requests of a run, taken or refused as the test wishes."""

    tracking_uri = "http://127.0.0.1:1"

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.error: Exception | None = None

    def _take(self, what: str) -> None:
        if self.error:
            raise self.error
        self.taken.append(what)

    def log_batch(self, _run: str, metrics: list[Any]) -> None:
        self._take(f"{metrics[0].key} {metrics[0].step}")

    def get_run(self, _run: str) -> None:
        self._take("looked up")

    def log_artifact(self, _run: str, path: str, _folder: str | None) -> None:
        self._take(Path(path).name)

    def set_terminated(self, _run: str, status: str) -> None:
        self._take(status)


def test_a_store_that_falls_silent_gets_everything_when_it_answers_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    monkeypatch.setattr(tracking, "PAUSE", 0.0)
    client = Store()
    run = tracking.Run(client, "r")
    run.log_metrics({"loss": 1.0}, 1)
    client.error = MlflowException("no route to host")
    run.log_metrics({"loss": 2.0}, 2)
    run.log_metrics({"loss": 3.0}, 3)
    assert capsys.readouterr().err.count("no route to host") == 1
    client.error = None
    run.log_artifact(Path(__file__))
    run.close()
    expected = ["loss 1", "loss 2", "loss 3", "looked up", Path(__file__).name, "FINISHED"]
    assert client.taken == expected
    assert "answers again" in capsys.readouterr().err


def test_what_a_store_never_took_is_told_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow.exceptions import MlflowException

    client = Store()
    run = tracking.Run(client, "r")
    client.error = ConnectionError("gone")
    for step in range(9):
        run.log_metrics({"loss": 1.0}, step)
    run.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 2  # once at the beginning, once at the end
    assert "run r lacks metrics of step 0" in said and "and 6 more" in said
    # A refusal that would come again is not sent again, and holds nothing up.
    run = tracking.Run(client, "r")
    client.error = MlflowException("no such run", error_code=5)
    run.log_metrics({"loss": 1.0}, 1)
    client.error = None
    run.log_metrics({"loss": 1.0}, 2)
    assert client.taken == ["loss 2"]


def test_commit_says_when_the_checkout_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    assert git_commit(tmp_path) == git_commit(tmp_path) == "unknown"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path) in said and "no git checkout" in said
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "a").write_text("1")
    for command in (["git", "init", "-q"], ["git", "add", "a"], [*git, "commit", "-qm", "first"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    clean = git_commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{clean}-dirty"
    # A folder within somebody else's repository is not at that one's commit.
    (tmp_path / "inner").mkdir()
    assert git_commit(tmp_path / "inner") == "unknown"
    monkeypatch.setenv(COMMIT_VARIABLE, clean)
    assert git_commit(tmp_path) == clean


DUBIOUS = """#!/bin/sh
echo "fatal: detected dubious ownership in repository at '$PWD'" >&2
exit 128
"""


@pytest.mark.parametrize(
    ("script", "fact"), [(None, "git is not installed"), (DUBIOUS, "safe.directory")]
)
def test_a_git_that_does_not_answer_is_told_once(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str | None,
    fact: str,
) -> None:
    tools = project / "tools"
    tools.mkdir()
    if script:
        (tools / "git").write_text(script)
        (tools / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    assert git_commit(project) == git_commit(project) == "unknown"
    assert capsys.readouterr().err.count(fact) == 1


@pytest.mark.extended
def test_dvc_runs_in_a_checkout_without_git(repository: Path) -> None:
    shutil.rmtree(repository / ".git")
    call_python(["-m", "dvc", "repro", "--quiet", "clips"], repository)
    assert (repository / "data" / "pocket" / "clips" / "numbers.txt").is_file()
