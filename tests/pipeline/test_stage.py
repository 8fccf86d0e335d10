"""One stage: fingerprints, locks, resuming, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from omniforcing.core.files import read_json, write_json
from omniforcing.pipeline import tracking
from omniforcing.pipeline.code import CodeBase
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.declaration import (
    MEASURING_CODE,
    PRESENTING_CODE,
    STAGE_MODULES,
    read_declaration,
)
from omniforcing.pipeline.stage import Stage, exclusive, run_stage
from omniforcing.pipeline.stages.shared.samples import sample_name
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]


def clips(stage: Stage) -> None:
    with stage.publish() as folder:
        (folder / "numbers.txt").write_text("1 " * stage.config.clips.count)
    stage.write_metrics({"count": stage.config.clips.count, "nested": {"name": "x", "half": 0.5}})


def run_clips(project: Path, *overrides: str) -> None:
    run_stage("clips", load_config(list(overrides), project), project, clips)


def fingerprint(project: Path, stage: str = "teacher", *overrides: str) -> str:
    config = load_config(list(overrides), project)
    return read_declaration(stage, project, config.preset).fingerprint(config, project)


def test_fingerprint_follows_config_inputs_and_code_and_nothing_else(project: Path) -> None:
    run_clips(project)
    before = fingerprint(project)
    assert (
        fingerprint(project, "teacher", "evaluate.clips=3", "trainer.threads=1", "clips.count=9")
        == before
    )
    assert fingerprint(project, "teacher", "teacher.text_dropout=0.5") != before
    # An old checkpoint counts its epochs in this unit.
    assert fingerprint(project, "teacher", "trainer.checkpoint_every=7") != before
    (project / "conf" / "config.yaml").write_text(
        "# a comment\n" + (project / "conf" / "config.yaml").read_text()
    )
    assert fingerprint(project) == before
    code = project / "pipelines" / "teacher.py"
    code.write_text(code.read_text() + "# a comment\n")
    assert fingerprint(project) == before
    code.write_text(code.read_text() + "CHANGED = True\n")
    changed = fingerprint(project)
    assert changed != before
    run_clips(project, "clips.count=9")
    assert fingerprint(project) not in (before, changed)


def test_an_evaluation_counts_code_that_measures_and_not_what_only_presents() -> None:
    counted = CodeBase(ROOT).closure(f"{STAGE_MODULES}/evaluate.py", PRESENTING_CODE)
    measures = {path.name for path in counted if path.parent.name in ("evaluation", "pocket")}
    assert measures >= {
        "samplers.py",
        "drift.py",
        "evaluate.py",
        "events.py",
        "nearest.py",
        "observe.py",
        "plots.py",
    }
    assert measures >= {"quality.py", "summary.py", "sync.py"}
    assert not measures & {"report.py", "curves.py", "ablation.py"}
    assert all(list(ROOT.glob(f"{path}*")) for path in PRESENTING_CODE)
    # Where something is trained, neither counts.
    trained = CodeBase(ROOT).closure(f"{STAGE_MODULES}/codec.py", MEASURING_CODE)
    computing = ("synthetic", "__init__")
    assert not [
        p for p in trained if p.parent.name in ("evaluation", "pocket") and p.stem not in computing
    ]


def test_a_stage_publishes_a_manifest_metrics_and_a_finished_run(project: Path) -> None:
    run_clips(project)
    data = project / "data" / "pocket"
    assert set(read_json(data / "clips" / "manifest.json")["files"]) == {"numbers.txt"}
    assert read_json(data / "clips.metrics.json")["nested"] == {"name": "x", "half": 0.5}
    memory = next((project / ".work" / "pocket" / "clips").glob("*/run.json"))
    run = tracking.connect(project).get_run(read_json(memory)["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"count": 3.0, "nested.half": 0.5}
    assert run.data.tags["preset"] == "pocket"
    assert read_json(project / ".work" / "pocket" / "timings.json")["clips"]["seconds"] >= 0


def test_an_interrupted_stage_continues_its_run_and_a_finished_one_begins_anew(
    project: Path,
) -> None:
    seen: list[str] = []

    def interrupted(stage: Stage) -> None:
        seen.append(stage.run_id)
        stage.log_metrics({"loss": 1.0}, step=len(seen))
        if len(seen) == 1:
            raise KeyboardInterrupt

    config = load_config(root=project)
    with pytest.raises(KeyboardInterrupt):
        run_stage("clips", config, project, interrupted)
    assert tracking.connect(project).get_run(seen[0]).info.status == "KILLED"
    run_stage("clips", config, project, interrupted)
    assert seen[1] == seen[0]
    assert len(tracking.connect(project).get_metric_history(seen[0], "loss")) == 2
    run_stage("clips", config, project, interrupted)
    assert seen[2] != seen[0]


def test_a_missing_input_names_the_stage_to_run(project: Path) -> None:
    with refuses("file.missing", "data/pocket/clips", "run --preset pocket teacher"):
        run_stage("teacher", load_config(root=project), project, lambda _: None)


def test_reading_an_undeclared_input_is_refused(project: Path) -> None:
    with refuses(
        "pipeline.undeclared-input", "data/pocket/teacher", "pipelines/stages.py", "'teacher'"
    ):
        run_stage(
            "clips", load_config(root=project), project, lambda stage: print(stage.input("teacher"))
        )


def test_a_lock_is_exclusive_and_freed(tmp_path: Path) -> None:
    refused = refuses("pipeline.already-running", "the stage", os.getpid())
    with (
        exclusive(tmp_path / "lock", "the stage"),
        refused,
        exclusive(tmp_path / "lock", "the stage"),
    ):
        pass
    with exclusive(tmp_path / "lock", "the stage"):
        pass


def script(project: Path, body: str, *words: str) -> subprocess.CompletedProcess[str]:
    (project / "pipelines" / "clips.py").write_text(f"def run(stage):\n    {body}\n")
    command = [sys.executable, "-m", "omniforcing", "stage", "clips", *words]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


def test_help_says_what_a_stage_reads_and_writes_without_running_it(project: Path) -> None:
    answer = script(project, "raise RuntimeError", "--help")
    assert answer.returncode == 0
    for part in ("Write some numbers.", "data/pocket/clips", "seed", "Examples:"):
        assert part in answer.stdout


def test_a_stage_without_a_body_is_refused(project: Path) -> None:
    (project / "pipelines" / "clips.py").write_text("RUN = 1\n")
    with refuses("pipeline.stage-without-body", "pipelines/clips.py"):
        run_stage("clips", load_config(root=project), project)


@pytest.mark.parametrize(
    ("body", "words", "exit_code", "facts"),
    [
        (
            "raise OSError(28, 'No space left on device', 'x.tar')",
            [],
            2,
            ["error[disk.full]: ", "x.tar"],
        ),
        ("raise KeyboardInterrupt", [], 130, ["stopped", "same command again"]),
        ("pass", ["clip.count=1"], 2, ["error[", "'clip'", "the command line", "'clips'?"]),
        ("pass", ["--presett=a"], 2, ["error[option.unknown]: ", "'--preset'"]),
        ("pass", ["preset=smoke"], 2, ["error[option.preset-as-override]: ", "--preset smoke"]),
    ],
)
def test_a_stage_ends_in_a_sentence_and_a_code(
    project: Path, body: str, words: list[str], exit_code: int, facts: list[str]
) -> None:
    answer = script(project, body, *words)
    assert answer.returncode == exit_code
    last = answer.stderr.strip().splitlines()[-1]
    assert all(fact in last for fact in facts), last
    assert "Traceback" not in answer.stderr


def test_a_fault_of_ours_keeps_its_traceback_and_fails_the_run(project: Path) -> None:
    answer = script(project, "raise RuntimeError('ours')")
    assert answer.returncode == 1
    assert "RuntimeError: ours" in answer.stderr
    memory = next((project / ".work" / "pocket" / "clips").glob("*/run.json"))
    assert tracking.connect(project).get_run(read_json(memory)["run_id"]).info.status == "FAILED"


def test_a_vanished_tracking_store_begins_a_new_run(project: Path) -> None:
    run_clips(project)
    memory = next((project / ".work" / "pocket" / "clips").glob("*/run.json"))
    write_json(memory, {"run_id": "0" * 32})
    run_clips(project)
    assert read_json(memory)["run_id"] != "0" * 32


def test_a_sample_of_any_caption_is_a_file_of_its_folder(tmp_path: Path) -> None:
    captions = ["a ball, at 24/7", "../up", "a\0b", "球が跳ねる " * 30, "red ball"]
    names = [sample_name(index, caption) for index, caption in enumerate(captions)]
    for name in names:
        (tmp_path / name).touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert names[0] == "0_a_ball,_at_24_7.mp4" and names[4] == "4_red_ball.mp4"
