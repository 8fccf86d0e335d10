"""The check of the ingest: it calls right what is right, and names what is not."""

import json
from pathlib import Path

import pytest

from benchmarks.ingest.__main__ import make, measure, verdict
from benchmarks.ingest.kinds import installed, kinds
from omniforcing.core.config import project_root

pytestmark = pytest.mark.extended


def test_a_right_file_is_right_and_a_moved_or_recoloured_one_is_not(tmp_path: Path) -> None:
    (kind,) = [kind for kind in kinds() if kind.name == "variable_rate.mp4"]
    assert installed(kind.tool)
    assert make(tmp_path, [kind]) == {}
    path = tmp_path / kind.name

    def found() -> str:
        return verdict(measure(project_root(), [path])[kind.name], kind)

    assert found() == "right"
    wanted = tmp_path / f"{kind.name}.json"
    right = json.loads(wanted.read_text())
    faults = {
        "wrong sync": {"stamps": [time + 0.1 for time in right["stamps"]]},
        "wrong colours": {"corners": [[200, 40, 80], *right["corners"][1:]]},
        "wrong sound": {"tones": [[0.05, 0], [0, 0.04]]},
    }
    for name, fault in faults.items():
        wanted.write_text(json.dumps(right | fault))
        assert found() == name
    path.write_bytes(b"junk")
    assert found() == "reject: not a readable video"


def test_there_are_sixty_kinds_and_more_of_several_programs() -> None:
    names = [kind.name for kind in kinds()]
    assert len(names) == len(set(names)) >= 60
    assert {"ffmpeg", "PyAV", "mkvmerge", "gst-launch-1.0"} <= {kind.tool for kind in kinds()}
