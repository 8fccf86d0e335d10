"""The dry run: what it changes of a preset, what it prints, that the project stays as it was."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from omniforcing.core.config import to_dict
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.declaration import stage_names
from omniforcing.pipeline.dry_run import (
    Footprint,
    count_parameters,
    dry_run,
    overrides,
    table,
    watch,
)
from omniforcing.pocket.foundation import architecture
from omniforcing.training.codec.training import crop_at
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "preset").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_changes_how_often_and_never_how_large(preset: str) -> None:
    config = load_config(root=ROOT, preset=preset)
    tried = load_config(overrides(config), ROOT, preset)
    for part in ("codec", "teacher"):
        assert architecture(getattr(tried, part), part) == architecture(getattr(config, part), part)
    assert to_dict(tried.student) == to_dict(config.student)
    assert tried.trainer.precision == config.trainer.precision
    for size in ("height", "width", "seconds"):
        assert getattr(tried.clips, size) == getattr(config.clips, size)
    assert [crop.frames for crop in tried.codec.video.crops] == [
        crop.frames for crop in config.codec.video.crops
    ]
    video = tried.codec.video
    legs = [crop_at(video.crops, step / video.steps).frames for step in range(video.steps)]
    assert legs == [crop.frames for crop in video.crops]  # each leg once
    assert tried.trajectories.steps % len(config.student.sigmas) == 0
    for stage in (tried.teacher, tried.bidirectional_dmd, tried.causal_ode, tried.self_forcing):
        assert stage.optim.steps == 1
    assert tried.clips.source == "synthetic"
    assert tried.clips.count < 10
    assert tried.clips.heldout_duets == (2 if config.clips.source == "synthetic" else 0)
    assert tried.trainer.accelerator == "auto"


def test_parameters_are_those_of_weights_with_a_config_beside_them(tmp_path: Path) -> None:
    for name in ("transformer", "text"):
        (tmp_path / name).mkdir()
        save_file(
            {"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / name / "model.safetensors"
        )
    (tmp_path / "transformer" / "config.json").write_text("{}")
    assert count_parameters(tmp_path) == 17


def test_the_table_has_a_row_per_stage_and_the_sum() -> None:
    lines = table(
        [
            Footprint("clips", 0, "-", 1.5, 0.25),
            Footprint("teacher", 2_014_000, "208 + 101", 2.0, 1.0, 7.5),
        ]
    ).splitlines()
    assert lines[1].split() == ["clips", "-", "-", "1.5", "0.25", "-"]
    assert lines[2].split() == ["teacher", "2.01", "208", "+", "101", "2.0", "1.00", "7.50"]
    assert lines[3].split() == ["all", "3.5"]
    assert len({len(line) for line in lines[:3]}) == 1


class Finishing:
    """A process that ends when it has been waited for three times."""

    waits = 0

    def is_alive(self) -> bool:
        return self.waits < 3

    def join(self, _timeout: float | None = None) -> None:
        self.waits += 1


def test_the_gpus_memory_is_the_most_that_is_in_use_while_a_stage_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = iter([8e9, 3e9, 6e9])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free), 10e9))
    process: Any = Finishing()
    assert watch(process, True) == 7.0
    assert watch(process, False) is None


def test_weights_that_are_not_there_are_one_sentence_with_their_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("omniforcing.pipeline.dry_run.run_stages", lambda *_: pytest.fail("ran"))
    with refuses("file.missing", "/weights/LTX-2", "ltx2", "codec"):
        dry_run(ROOT, "ltx2")


def test_it_is_of_all_stages() -> None:
    command = [sys.executable, "pipelines/main.py", "--preset", "smoke", "--dry-run", "teacher"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2
    assert "a dry run tries every stage" in answer.stderr


@pytest.mark.slow
def test_a_stage_that_does_not_fit_is_named_after_its_own_error(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = project / "pipelines" / "teacher.py"
    sentence = (
        "from omniforcing.core.errors import OmniForcingError\n"
        "def run(stage):\n"
        "    raise OmniForcingError('model.too-wide', 'too wide')\n"
    )
    teacher.write_text(sentence)
    with refuses("pipeline.dry-run-failed", "pocket", "teacher", "exit code 2"):
        dry_run(project, None)
    assert "error[model.too-wide]: too wide" in capfd.readouterr().err
    assert not (project / "data").exists()


@pytest.mark.slow
def test_the_smallest_preset_runs_dry_and_leaves_the_project_as_it_was(tmp_path: Path) -> None:
    def state() -> dict[Path, int]:
        watched = [
            ROOT / name
            for name in ("conf", "data", ".work", "mlflow.db", "dvc.lock", "src/omniforcing/assets")
        ]
        watched += [
            path
            for name in ("data/smoke", ".work/smoke")
            for path in (ROOT / name, *(ROOT / name).rglob("*"))
        ]
        return {path: path.stat().st_mtime_ns for path in watched if path.exists()}

    before = state()
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "pipelines/main.py", "--preset", "smoke", "--dry-run"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    rows = [line.split() for line in answer.stdout.splitlines()]
    names = [row[0] for row in rows if row and row[0] in stage_names(ROOT)]
    assert names == stage_names(ROOT)
    assert state() == before
    assert list(tmp_path.glob("omniforcing-*")) == []
