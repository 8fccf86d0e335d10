"""What DVC would run again after a change, for the real stages: outputs stand in as empty folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from yaml import safe_load

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "DVC_NO_ANALYTICS": "1"}
AFTER_CAUSAL = {"causal_ode", "self_forcing", "evaluate", "export"}

pytestmark = pytest.mark.slow


def dvc(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "dvc", *words]
    answer = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which every stage of preset pocket counts as run."""
    root = tmp_path_factory.mktemp("finished")
    for name in ("conf", "pipelines", "src"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "optional"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    for stage in safe_load((root / "dvc.yaml").read_text())["stages"].values():
        files = [*stage["metrics"], *(path for plot in stage.get("plots", []) for path in plot)]
        for path in (root / file.replace("${preset}", "pocket") for file in files):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        folder = root / stage["outs"][0].replace("${preset}", "pocket")
        folder.mkdir(parents=True)
        (folder / "file").write_text(stage["cmd"])
    dvc(root, "init", "-q", "--no-scm")
    dvc(root, "commit", "--force", "-q")
    return root


def changed(root: Path, path: str, old: str, new: str) -> set[str]:
    """Stages that DVC calls changed once ``old`` reads ``new`` in a file; the file is put back."""
    file = root / path
    text = file.read_text()
    edited, count = re.subn(old, new, text, count=1)
    assert count == 1
    file.write_text(edited)
    try:
        return set(json.loads(dvc(root, "status", "--json")))
    finally:
        file.write_text(text)


def test_nothing_changed_runs_nothing(finished: Path) -> None:
    assert json.loads(dvc(finished, "status", "--json")) == {}


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        (r"window: \d", "window: 2", AFTER_CAUSAL),
        (r"critic_lr: \S+", "critic_lr: 0.5", {"bidirectional_dmd"}),
        (r"tolerance_ms: \S+", "tolerance_ms: 60.0", {"evaluate"}),
        (r"checkpoint_every: \d+", "checkpoint_every: 51", set()),
        (r"per_shard: \d+", "per_shard: 63", {"shards"}),
    ],
)
def test_a_changed_knob_runs_the_stages_that_use_it(finished: Path, old: str, new: str, stages: set[str]) -> None:
    assert changed(finished, "conf/config.yaml", old, new) == stages


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("src/omniforcing/stream/engine.py", {"evaluate", "export"}),
        ("src/omniforcing/distill/self_forcing.py", {"self_forcing"}),
        ("src/omniforcing/data/inspect.py", set()),
        ("src/omniforcing/ops/tracking.py", set()),
        ("README.md", set()),
    ],
)
def test_edited_code_runs_the_stages_that_use_it(finished: Path, path: str, stages: set[str]) -> None:
    (finished / "README.md").write_text("read me")
    assert changed(finished, path, r"\A", "\n") == stages


def test_another_preset_has_everything_to_run(finished: Path) -> None:
    assert len(changed(finished, "conf/config.yaml", "preset: pocket", "preset: smoke")) == 11
