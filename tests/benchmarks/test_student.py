"""The student's benchmark: what it needs, and the object it prints."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from benchmarks.student.bench import StudentBench
from benchmarks.student.cases import random_student, tiny
from benchmarks.student.operations import bare_calls, block_operations
from omniforcing.core.config import project_root
from omniforcing.model.options import DEFAULT
from omniforcing.pipeline.planner.compat import FLOPS

pytestmark = pytest.mark.extended

FIGURES = {
    *(
        "fps",
        "ttfc_s",
        "block_p50_s",
        "block_p95_s",
        "flatness",
        "peak_mb_early",
        "peak_mb_late",
        "matmul_share",
    ),
    *("split", "ratio_bidirectional", "ratio_plain", "ratio_floor", "ratio_without"),
}

# What is compiled is the same, and nobody waits for C++.
WITHOUT_COMPILER = """
import torch
torch.compiler.set_default_backend("eager")
from benchmarks.student.__main__ import main
main()
"""


def python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_needs_nothing_of_the_training_tools() -> None:
    """A GPU machine that only measures has torch, diffusers and wheels that were carried there."""
    loaded = python(
        "-c",
        "import sys, benchmarks.student.__main__; "
        "print(*{name.split('.')[0] for name in sys.modules})",
    ).split()
    assert not {"lightning", "ray", "mlflow", "dvc", "webdataset", "matplotlib"} & set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "program", "on"),
    [
        ("tiny", ["-c", WITHOUT_COMPILER], ["--on", "compiled"]),
        ("ltx2", ["-m", "benchmarks.student"], ["--off", "ring"]),
    ],
    ids=["tiny", "ltx2"],
)
def test_one_json_object_has_every_figure_and_the_ratio_without_each_speed_up(
    config: str, program: list[str], on: list[str]
) -> None:
    """Compiled too; and the 19B model, of which one layer and two heads."""
    small = ["--layers", "1", "--heads", "2", "--device", "cpu", "--grid", "1", "1", "--text", "16"]
    small += ["--seconds", "2", "--rounds", "1", "--threads", "1"]
    found = json.loads(python(*program, "--config", config, "--json", *small, *on))
    assert found.keys() >= FIGURES
    assert found["ratio_without"].keys() == {name for name, on in found["speed"].items() if on}
    assert found["split"]["steps"] > 0 and found["split"]["decode"] is None


def test_the_bare_calls_of_a_block_have_its_arithmetic() -> None:
    device = torch.device("cpu")
    case = tiny().with_layers(2)
    bench = StudentBench(case, random_student(case, device), device, DEFAULT)
    operations = 0
    for call in bare_calls(bench):
        operation: Any = call.func
        operations += FLOPS[operation.overloadpacket](*call.args, out_val=call())
    assert operations == pytest.approx(block_operations(bench), rel=0.02)
