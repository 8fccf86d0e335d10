"""A toy project of two tiny stages: real config, and sources that a stage depends on."""

from pathlib import Path

from omniforcing.pipeline.generate import write_pipelines

STAGES = """
from omniforcing.pipeline.declaration import StageSpec

STAGES = (
    StageSpec("clips", "Write some numbers.", keys=("seed", "clips"), body="pipelines/clips.py"),
    StageSpec(
        "teacher",
        "Add them up.",
        reads=("clips",),
        keys=("teacher",),
        body="pipelines/teacher.py",
    ),
)
"""
# Lowest module of the toy's own sources, which only the teacher imports.
LAYOUT = (
    '"""The table."""\n\n\ndef steps() -> int:\n    """Steps of a training."""\n    return 20\n'
)
CLIPS = """
def run(stage):
    with stage.publish() as folder:
        (folder / "numbers.txt").write_text("1 " * stage.config.clips.count)
    stage.write_metrics({"count": stage.config.clips.count})
"""
# Counts to 20 slowly with a checkpoint in its work folder, as a training stage does.
TEACHER = """
import os, time
import omniforcing.core.layout
from omniforcing.core.files import atomic_write

def run(stage):
    total = len((stage.input("clips") / "numbers.txt").read_text().split())
    checkpoint = stage.work / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(first, 20):
        time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
        atomic_write(checkpoint, str(step + 1))
    stage.log_metrics({"first": first})
    with stage.publish() as folder:
        (folder / "sum.txt").write_text(str(total))
    stage.write_metrics({"total": total})
"""
CONFIG = """
preset: pocket
cluster: local
seed: 0
clips:
  count: 3
  heldout: 1
teacher:
  text_dropout: 0.1
"""


def write_project(folder: Path) -> None:
    """Write the toy project's files and its generated pipelines into ``folder``."""
    files = {
        "pipelines/stages.py": STAGES,
        "src/omniforcing/core/layout.py": LAYOUT,
        "conf/config.yaml": CONFIG,
        "conf/cluster/local.yaml": "address: null\n",
        "conf/preset/pocket.yaml": "clips: {}\nteacher: {}\n",
        "conf/preset/smoke.yaml": "clips:\n  count: 2\nteacher: {}\n",
        "conf/preset/mine.yaml": "clips: {source: folder, folder: videos}\nteacher: {}\n",
        "pipelines/clips.py": CLIPS,
        "pipelines/teacher.py": TEACHER,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_pipelines(folder)
