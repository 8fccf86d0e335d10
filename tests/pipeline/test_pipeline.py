"""The pipeline through the real DVC on a toy project: presets, kills, exactly what a change runs
again.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omniforcing.core.environment import git_commit
from omniforcing.core.files import read_json
from omniforcing.pipeline import tracking
from omniforcing.pipeline.runner import minutes_table
from tests.support.checkout import ENVIRONMENT, alive, changed_files, commit, finish, start, status
from tests.support.refusals import refused

pytestmark = pytest.mark.slow


def wait_for_step(repository: Path, preset: str, step: int) -> int:
    """Wait until the toy teacher has passed ``step``; return its process id."""
    work = repository / ".work" / preset / "teacher"
    for _ in range(1800):
        found = [int(p.read_text()) for p in work.glob("*/step")]
        if found and max(found) >= step:
            return int((work / "lock").read_text())
        time.sleep(0.1)
    raise AssertionError("the teacher never came so far")


@pytest.fixture(scope="module")
def first_run(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A repository after its first run, the exit code, and what was printed."""
    folder = shutil.copytree(template, tmp_path_factory.mktemp("finished"), dirs_exist_ok=True)
    return folder, *finish(start(folder))


@pytest.fixture
def finished(project: Path, first_run: tuple[Path, int, str]) -> Path:
    """A copy of the repository after its first run."""
    folder, code, output = first_run
    assert code == 0, output
    return shutil.copytree(folder, project, dirs_exist_ok=True)


def test_a_run_is_tracked_and_a_changed_parameter_reruns_exactly_what_depends_on_it(
    finished: Path, first_run: tuple[Path, int, str]
) -> None:
    repository, (_, _, output) = finished, first_run
    assert "teacher" in output.split("minutes")[1]
    assert status(repository) == "Data and pipelines are up to date.\n"
    client = tracking.connect(repository)
    runs = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    parent = next(run for run in runs if run.info.run_name == "pipeline pocket")
    children = {
        r.data.tags["stage"]: r
        for r in runs
        if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert set(children) == {"clips", "teacher"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert children["teacher"].data.metrics["total"] == 3
    assert children["teacher"].data.params["teacher.text_dropout"] == "0.1"
    assert children["teacher"].data.tags["git_commit"] == git_commit(repository)
    assert "(up to date)" in minutes_table(repository, "pocket", time.time())

    config = repository / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("text_dropout: 0.1", "text_dropout: 0.2"))
    code, output = finish(start(repository))
    assert code == 0
    assert "Stage 'clips' didn't change, skipping" in output
    assert "Running stage 'teacher'" in output


def dvc(repository: Path, *words: str) -> str:
    """What DVC prints for a plain command; it must succeed."""
    command = ["dvc", *words]
    answer = subprocess.run(
        command, cwd=repository, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def stages_run(output: str) -> list[str]:
    """Stages that a `dvc repro` ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def test_plain_dvc_notices_edited_prose_and_runs_nothing_of_it_but_what_edited_code_changes(
    finished: Path,
) -> None:
    repository = finished
    assert stages_run(dvc(repository, "repro")) == []
    lowest = repository / "src" / "omniforcing" / "core" / "layout.py"
    text = lowest.read_text()
    lowest.write_text(text.replace("The table.", "The only table.").replace("def", "# Why.\ndef"))
    assert "modified:           src/omniforcing" in dvc(repository, "status")
    assert stages_run(dvc(repository, "repro")) == ["code"]
    assert status(repository) == "Data and pipelines are up to date.\n"
    lowest.write_text(text.replace("return 20", "return 21"))
    assert "modified:           src/omniforcing" in dvc(repository, "status")
    assert stages_run(dvc(repository, "repro", "clips")) == ["code"]
    assert "data/pocket/code/teacher" in dvc(repository, "status")
    assert stages_run(dvc(repository, "repro")) == ["teacher"]


def test_plain_dvc_shows_pulls_and_experiments(repository: Path, tmp_path: Path) -> None:
    assert stages_run(dvc(repository, "repro")) == ["code", "clips", "teacher"]
    assert "teacher.metrics.json" in dvc(repository, "metrics", "show")
    dvc(repository, "remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc(repository, "push")
    commit(repository)
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "-q", str(repository), str(other)], check=True)
    dvc(other, "pull")
    assert status(other) == "Data and pipelines are up to date.\n"
    assert stages_run(dvc(other, "repro")) == []
    said = dvc(
        repository,
        "exp",
        "run",
        "--name",
        "trial",
        "--set-param",
        "conf/preset/pocket.yaml:++teacher.text_dropout=0.3",
    )
    assert stages_run(said) == ["teacher"]
    assert "trial" in dvc(repository, "exp", "show", "--csv")


def test_an_old_lock_and_a_stale_pipeline_are_one_sentence(repository: Path) -> None:
    pipeline = repository / "dvc.yaml"
    text = pipeline.read_text()
    pipeline.write_text(text.replace("Add them up.", "Add."))
    code, output = finish(start(repository))
    assert code == 2 and output.count("\n") == 1
    refused(output, "pipeline.stale-file", pipeline, "omniforcing pipeline --write")
    pipeline.write_text(text)
    entry = "{cmd: x, deps: [{path: src/omniforcing/core/layout.py, md5: x}], outs: []}"
    (repository / "dvc.lock").write_text(f"schema: '2.0'\nstages: {{teacher: {entry}}}\n")
    code, output = finish(start(repository))
    assert code == 2
    assert (
        "dvc.lock was written for an older dvc.yaml: "
        "its stage teacher depends on src/omniforcing/core/layout.py" in output
    )
    assert output.count("\n") == 1


def test_another_preset_leaves_the_tracked_one_untouched_and_keeps_its_own_lock(
    finished: Path,
) -> None:
    repository = finished
    lock = (repository / "dvc.lock").read_bytes()
    commit(repository)
    code, output = finish(start(repository, "--preset", "smoke"))
    assert code == 0, output
    assert "written: pipelines/presets/smoke/dvc.yaml, the pipeline of preset smoke\n" in output
    assert (repository / "data" / "smoke" / "teacher" / "sum.txt").read_text() == "2"
    assert (repository / "dvc.lock").read_bytes() == lock
    assert changed_files(repository) == "?? pipelines/presets/\n"
    assert status(repository) == "Data and pipelines are up to date.\n"
    code, output = finish(start(repository, "--preset", "smoke"))
    assert output.count("didn't change, skipping") == 3
    client = tracking.connect(repository)
    runs = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    assert not any(
        run.data.tags["git_commit"].endswith("-dirty")
        for run in runs
        if run.data.tags["preset"] == "smoke"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
@pytest.mark.parametrize("victim", ["stage", "dvc", "main"])
def test_killed_anywhere_a_run_continues_and_leaves_no_orphan(
    repository: Path, victim: str
) -> None:
    process = start(repository, "--preset", "smoke", pause=0.3)
    stage = wait_for_step(repository, "smoke", 3)
    dvc = next(
        int(p.parent.name)
        for p in Path("/proc").glob("[0-9]*/cmdline")
        if alive(int(p.parent.name))
        and str(process.pid) == Path(p.parent, "stat").read_text().rsplit(")", 1)[1].split()[1]
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


def test_a_users_folder_is_listed_anew_and_the_rest_runs_only_if_it_changed(
    repository: Path,
) -> None:
    assert finish(start(repository, "--preset", "mine"))[0] == 0
    code, output = finish(start(repository, "--preset", "mine"))
    assert code == 0
    assert stages_run(output) == [
        f"pipelines/presets/mine/dvc.yaml:{name}" for name in ("code", "clips")
    ]
    assert "Stage 'pipelines/presets/mine/dvc.yaml:teacher' didn't change, skipping" in output


def test_a_second_run_in_the_same_checkout_is_refused(repository: Path) -> None:
    first = start(repository, pause=0.2)
    wait_for_step(repository, "pocket", 1)
    code, output = finish(start(repository, "--preset", "smoke"))
    assert code == 2
    assert output.count("\n") == 1
    refused(output, "pipeline.already-running", f"process {first.pid}")
    assert finish(first)[0] == 0


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--preset", "smok"], ["'smok'", "'smoke'"]),
        (["techer"], ["pipeline.unknown-stage", "'techer'", "clips, teacher", "'teacher'?"]),
    ],
)
def test_an_unknown_preset_or_stage_is_one_sentence(
    repository: Path, words: list[str], facts: list[str]
) -> None:
    code, output = finish(start(repository, *words))
    assert code == 2
    assert all(fact in output for fact in ["error[", *facts]), output
    assert "Traceback" not in output
