"""What plain `dvc repro` runs again after a change, for the real stages.

Stand-ins write the outputs.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from omniforcing.pipeline.code import SOURCES
from omniforcing.pipeline.declaration import read_specs

ROOT = Path(__file__).parents[2]
AFTER_CAUSAL = {"causal_ode", "self_forcing", "evaluate", "export"}
# Everything that computes uses the block table.
ALL = {spec.name for spec in read_specs(ROOT) if not spec.optional}
# Runs as `python` of a stage: notes the stage and writes its outputs, always the same.
STAND_IN = """#!{python}
import os, sys
from pathlib import Path
if sys.argv[1:4] != ["-m", "omniforcing", "stage"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
from omniforcing.pipeline.declaration import read_specs
spec = next(s for s in read_specs(Path.cwd()) if s.name == sys.argv[4])
for path in (spec.metrics("pocket"), spec.curve("pocket")):
    Path(path).write_text("{{}}")
Path(spec.folder("pocket")).mkdir()
Path(spec.folder("pocket"), "file").write_text(spec.name)
with open("ran", "a") as file:
    file.write(spec.name + "\\n")
"""

pytestmark = pytest.mark.slow


def repro(root: Path) -> set[str]:
    """The stages that plain `dvc repro` runs, but for the one that writes the digests."""
    (root / "ran").unlink(missing_ok=True)
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": path}
    command = [sys.executable, "-m", "dvc", "repro"]
    answer = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return set((root / "ran").read_text().split()) if (root / "ran").exists() else set()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which every stage of preset pocket has run, by stand-ins."""
    root = tmp_path_factory.mktemp("finished")
    for name in ("conf", "pipelines", "src"):
        ignored = shutil.ignore_patterns("__pycache__", "optional", "presets", "*.safetensors")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    stand_in = root / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    command = [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"]
    subprocess.run(command, cwd=root, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, check=True)
    assert repro(root) == ALL
    return root


def edit(root: Path, path: str, old: str, new: str) -> None:
    """Replace the first match in a file."""
    file = root / path
    edited, count = re.subn(old, new, file.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1
    file.write_text(edited)


def test_nothing_changed_or_only_prose_runs_nothing(finished: Path) -> None:
    assert repro(finished) == set()
    for path in (
        "core/layout.py",
        "pipeline/tracking.py",
        "data/inspect.py",
        "distill/self_forcing.py",
    ):
        edit(finished, f"{SOURCES}/{path}", r'\A"""', '# A comment.\n"""Prose. ')
    (finished / "README.md").write_text("read me")
    assert repro(finished) == set()


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("core/layout.py", ALL),
        ("streaming/engine.py", {"evaluate", "export"}),
        ("distill/self_forcing.py", {"self_forcing"}),
        ("data/inspect.py", set()),
        ("pipeline/tracking.py", set()),
    ],
)
def test_one_line_of_code_runs_exactly_the_stages_that_use_it(
    finished: Path, path: str, stages: set[str]
) -> None:
    edit(finished, f"{SOURCES}/{path}", r"\Z", "\nEDITED = True\n")
    assert repro(finished) == stages


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        (r"window: \d", "window: 2", AFTER_CAUSAL),
        (r"critic_lr: \S+", "critic_lr: 0.5", {"bidirectional_dmd"}),
        (r"page_clips: \d+", "page_clips: 7", {"evaluate"}),
        (r"checkpoint_every: \d+", "checkpoint_every: 51", set()),
        (r"per_shard: \d+", "per_shard: 63", {"shards"}),
    ],
)
def test_a_changed_knob_runs_the_stages_that_use_it(
    finished: Path, old: str, new: str, stages: set[str]
) -> None:
    edit(finished, "conf/config.yaml", old, new)
    assert repro(finished) == stages
