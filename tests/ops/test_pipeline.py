"""The pipeline through the real DVC on a toy project: presets, kills, exactly what a change retrains."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from omniforcing.files import read_json
from omniforcing.ops import tracking
from omniforcing.ops.pipeline import minutes_table
from tests.ops.checkout import alive, changed_files, commit, finish, start, status

pytestmark = pytest.mark.slow


def wait_for_step(repository: Path, preset: str, step: int) -> int:
    """Wait until the toy teacher has passed ``step``; return its process id."""
    work = repository / ".work" / preset / "teacher"
    for _ in range(600):
        found = [int(p.read_text()) for p in work.glob("*/step")]
        if found and max(found) >= step:
            return int((work / "lock").read_text())
        time.sleep(0.1)
    raise AssertionError("the teacher never came so far")


def test_a_run_is_tracked_and_a_changed_parameter_reruns_exactly_what_depends_on_it(repository: Path) -> None:
    code, output = finish(start(repository))
    assert code == 0, output
    assert "teacher" in output.split("minutes")[1]
    assert status(repository) == "Data and pipelines are up to date.\n"
    client = tracking.connect(repository)
    runs = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    parent = next(run for run in runs if run.info.run_name == "pipeline pocket")
    children = {r.data.tags["stage"]: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {"clips", "teacher"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert children["teacher"].data.metrics["total"] == 3
    assert children["teacher"].data.params["teacher.text_dropout"] == "0.1"
    assert children["teacher"].data.tags["git_commit"] == tracking.git_commit(repository)
    assert "(up to date)" in minutes_table(repository, "pocket", time.time())

    config = repository / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("text_dropout: 0.1", "text_dropout: 0.2"))
    code, output = finish(start(repository))
    assert code == 0
    assert "Stage 'clips' didn't change, skipping" in output
    assert "Running stage 'teacher'" in output


def test_another_preset_leaves_the_tracked_one_untouched_and_keeps_its_own_lock(repository: Path) -> None:
    assert finish(start(repository))[0] == 0
    lock = (repository / "dvc.lock").read_bytes()
    commit(repository)
    code, output = finish(start(repository, "--preset", "smoke"))
    assert code == 0, output
    assert (repository / "data" / "smoke" / "teacher" / "sum.txt").read_text() == "2"
    assert (repository / "dvc.lock").read_bytes() == lock
    assert changed_files(repository) == ""
    assert status(repository) == "Data and pipelines are up to date.\n"
    code, output = finish(start(repository, "--preset", "smoke"))
    assert output.count("didn't change, skipping") == 2
    client = tracking.connect(repository)
    runs = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    assert not any(run.data.tags["git_commit"].endswith("-dirty") for run in runs if run.data.tags["preset"] == "smoke")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
@pytest.mark.parametrize("victim", ["stage", "dvc", "main"])
def test_killed_anywhere_a_run_continues_and_leaves_no_orphan(repository: Path, victim: str) -> None:
    process = start(repository, "--preset", "smoke", pause=0.3)
    stage = wait_for_step(repository, "smoke", 3)
    dvc = next(
        int(p.parent.name)
        for p in Path("/proc").glob("[0-9]*/cmdline")
        if alive(int(p.parent.name)) and str(process.pid) == Path(p.parent, "stat").read_text().rsplit(")", 1)[1].split()[1]
    )
    os.kill({"stage": stage, "dvc": dvc, "main": process.pid}[victim], signal.SIGKILL)
    code, output = finish(process)
    assert code != 0
    for _ in range(50):
        if not alive(stage) and not alive(dvc):
            break
        time.sleep(0.1)
    assert not alive(stage)
    assert not alive(dvc)
    memory = next((repository / ".work" / "smoke" / "teacher").glob("*/run.json"))
    run = read_json(memory)["run_id"]
    assert not (repository / "data" / "smoke" / "teacher").exists()
    code, output = finish(start(repository, "--preset", "smoke"))
    assert code == 0, output
    resumed = tracking.connect(repository).get_run(run)
    assert resumed.info.status == "FINISHED"
    assert resumed.data.metrics["first"] >= 3
    assert "preset: pocket" in (repository / "conf" / "config.yaml").read_text()
    assert not (repository / "dvc.lock").exists()


def test_a_users_folder_is_listed_anew_and_the_rest_runs_only_if_it_changed(repository: Path) -> None:
    assert finish(start(repository, "--preset", "mine"))[0] == 0
    code, output = finish(start(repository, "--preset", "mine"))
    assert code == 0
    assert "Running stage 'clips'" in output
    assert "Stage 'teacher' didn't change, skipping" in output


def test_a_second_run_in_the_same_checkout_is_refused(repository: Path) -> None:
    first = start(repository, pause=0.2)
    wait_for_step(repository, "pocket", 1)
    code, output = finish(start(repository, "--preset", "smoke"))
    assert code == 2
    assert output.startswith(f"error: a pipeline run in this checkout is already running (process {first.pid}); wait for it")
    assert output.count("\n") == 1
    assert finish(first)[0] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--preset", "smok"], "unknown preset 'smok'"), (["techer"], "dvc.yaml has no stage 'techer'; it has: clips, teacher")],
)
def test_an_unknown_preset_or_stage_is_one_sentence(repository: Path, words: list[str], sentence: str) -> None:
    code, output = finish(start(repository, *words))
    assert code == 2
    assert sentence in output
    assert "Traceback" not in output
