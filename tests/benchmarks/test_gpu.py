"""The GPU check: its runner when parts fail, its oracles on a CPU, and all of it at tiny size."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import machine_info, parity, runner
from benchmarks.gpu.bench import memory_needed
from benchmarks.gpu.child import PARTS
from benchmarks.gpu.networks import GENERATIONS
from benchmarks.gpu.profiling import kind_of
from benchmarks.gpu.rows import OutOfBounds, Results, Row, markdown
from benchmarks.gpu.settings import PartSettings
from benchmarks.presets import load_with_yaml
from benchmarks.student.cases import ltx2
from omniforcing.core.config import project_root, to_dict
from omniforcing.pipeline.config import load_config
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

ABOUT = {"device": "CPU", "commit": "abc", "small": True}


def on_cpu(seconds: float = 300.0) -> PartSettings:
    return PartSettings("cpu", True, time.time() + seconds)


def test_a_part_in_which_everything_goes_wrong_still_gives_every_row(tmp_path: Path) -> None:
    """A crash and a hang cost their own row.

    The others go on in a new process and see earlier figures.
    """
    results = Results(ABOUT, tmp_path / "out.json")
    runner.run_part(results, "faulty", "tests.support.faulty", on_cpu())
    found = {row.name: (row.state, row.why) for row in results.rows}
    assert found["fine"] == ("ok", "")
    assert found["raising"] == ("failed", "ValueError: a sentence")
    assert found["wrong"] == ("wrong", "above 2")
    assert found["dying"][0] == "failed" and "died of SIGKILL" in found["dying"][1]
    assert found["hanging"][0] == "failed" and "gave no answer" in found["hanging"][1]
    needs = (
        "needs the package no_such_package (pip install no_such_package); "
        "would be without a package"
    )
    assert found["without a package"] == ("missing", needs)
    assert found["without a card"] == ("skipped", "needs a CUDA device; would be without a card")
    assert results.rows[-1] == replace(
        results.rows[-1], name="last", state="ok", figures={"figure": 2.0}
    )
    kept = json.loads((tmp_path / "out.json").read_text())
    assert [row["name"] for row in kept["rows"]] == [row.name for row in results.rows]
    assert kept["measurements"]["faulty"] == [row.name for row in results.rows]
    assert not results.complete("faulty")  # what failed is tried again by a later call


def test_a_part_that_is_complete_starts_no_process_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    first = Results(ABOUT, path)
    first.measurements["parity"] = ["good", "beyond"]
    first.add(Row("parity", "good", "ok", {"figure": 1.0}))
    assert not first.complete("parity") and not first.complete("student")
    first.add(Row("parity", "beyond", "wrong", {"figure": 9.0}, "above 2"))
    started: list[str] = []
    monkeypatch.setattr(runner, "run_part", lambda _results, part, *_: started.append(part))
    runner.run(Results(ABOUT, path), ["parity", "student"], 1.0, "cpu", True)
    assert started == ["student"]


def test_a_part_that_has_no_time_left_says_so_for_each_measurement() -> None:
    results = Results(ABOUT)
    runner.run_part(results, "faulty", "tests.support.faulty", on_cpu(seconds=0.0))
    assert {row.state for row in results.rows} <= {"stopped", "skipped", "missing"}
    assert all(row.why for row in results.rows)


def test_a_file_goes_on_where_it_stopped_and_another_runs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    first = Results(ABOUT, path)
    first.add(Row("parity", "good", "ok", {"figure": 1.0}))
    first.add(Row("parity", "late", "stopped", why="out of time"))
    again = Results(ABOUT, path)
    assert again.done("parity") == {"good"} and [row.name for row in again.rows] == ["good"]
    with refuses("benchmarks.another-run", path, "'abc'", "'def'"):
        Results({**ABOUT, "commit": "def"}, path)
    for other in ("[]", '{"schema": 1}'):
        path.write_text(other)
        with refuses("file.unknown-schema", path):
            Results(ABOUT, path)
    with refuses("file.is-a-folder", tmp_path):
        Results(ABOUT, tmp_path)
    with refuses("file.no-folder", tmp_path / "missing"):
        Results(ABOUT, tmp_path / "missing" / "out.json")


def test_tables_have_a_column_per_figure_and_say_why_where_there_is_none() -> None:
    results = Results(ABOUT)
    results.add(Row("student", "eager", "ok", {"fps": 51.234, "blocks": 62}))
    results.add(Row("student", "fp8", "wrong", {"fps": 80.0}, "too far"))
    results.add(Row("student", "compiled", "failed", why="out of memory"))
    shown = markdown(results, {"student": "The student"})
    assert "| eager | 51.2 | 62 |  |" in shown
    assert "| fp8 | 80 |  | **wrong**: too far |" in shown
    assert "- compiled: failed, out of memory" in shown


@pytest.mark.parametrize("check", [parity.cached_against_masked, parity.causality])
def test_the_oracles_hold_on_a_cpu_in_every_generation(check: object) -> None:
    torch.set_num_threads(1)
    found = check(on_cpu())  # type: ignore[operator]
    assert set(found) == {*GENERATIONS, "bound"}


def test_a_cache_with_a_narrower_window_than_the_mask_is_called_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = replace(parity.ROLLOUT, window=1)
    new_cache = parity.new_cache
    monkeypatch.setattr(
        parity, "new_cache", lambda model, _, static: new_cache(model, narrow, static)
    )
    with pytest.raises(OutOfBounds, match=r"further from the oracle than 1e-05: 2\.0, 2\.3, 2\.5"):
        parity.cached_against_masked(on_cpu())


def test_a_stream_that_is_not_a_number_is_called_wrong_and_kept(tmp_path: Path) -> None:
    """JSON knows no NaN; the row must reach the file all the same."""
    with pytest.raises(OutOfBounds, match=r"2\.3") as wrong:
        parity.within({"2.0": 0.0, "2.3": float("nan")}, 0.1)
    results = Results(ABOUT, tmp_path / "out.json")
    results.add(
        Row(
            "parity",
            "bf16",
            "wrong",
            {**wrong.value.figures, "largest": float("inf")},
            str(wrong.value),
        )
    )
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["figures"] == {"2.0": 0.0, "2.3": "nan", "bound": 0.1, "largest": "inf"}
    assert "| nan |" in markdown(results, {"parity": "Parity"})


@pytest.mark.parametrize(
    "answer", [b"garbage\n", b"No devices were found\n", b"1, 2, 3, 4, 5, 6\n", b"\xff\xfe\n", b""]
)
def test_an_nvidia_smi_that_answers_something_else_is_left_out(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "nvidia-smi"
    (tmp_path / "answer").write_bytes(answer)
    fake.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine_info, "probe", lambda: {"name": "a card", "uuid": "GPU-1"})
    assert machine_info.gpu_clocks("cuda") is None
    (tmp_path / "answer").write_bytes(b"1980, 3201, 1980, 41, [N/A]\n")
    assert machine_info.gpu_clocks("cuda") == "SM 1980 of 1980 MHz, memory 3201 MHz, 41 C, [N/A] W"


def test_presets_read_without_omegaconf_are_those_that_it_reads() -> None:
    root = project_root()
    for name in (path.stem for path in (root / "conf" / "preset").glob("*.yaml")):
        assert to_dict(load_with_yaml(name)) == to_dict(load_config(root=root, preset=name)), name


def test_memory_of_the_19b_stream_is_its_weights_and_what_stands_beside_them() -> None:
    """18.88 B parameters in bf16.

    Released originals save the joined projections of all but the text attentions.
    """
    case = ltx2()
    released, kept = (
        memory_needed(case, release=True) / 1e9,
        memory_needed(case, release=False) / 1e9,
    )
    assert 37.75 + 14 < released < 60 and 9 < kept - released < 11


@pytest.mark.parametrize(
    ("operation", "shapes", "kind"),
    [
        ("aten::_flash_attention_forward", [[1, 32, 1152, 128]], "attention"),
        ("aten::addmm", [[16384], [1152, 4096], [4096, 16384]], "feed_forward"),
        ("aten::addmm", [[12288], [1152, 4096], [4096, 12288]], "projections"),
        ("aten::gelu", [[1, 1152, 16384]], "feed_forward"),
        ("aten::copy_", [[1, 32, 1152, 128]], "copies"),
        ("aten::addcmul", [[1, 1152, 4096]], "adaln_norms_rope"),
    ],
)
def test_operations_are_told_apart(operation: str, shapes: list[list[int]], kind: str) -> None:
    assert kind_of(operation, shapes) == kind


def test_a_check_whose_parent_is_killed_ends_with_it() -> None:
    """It would keep the card's memory for as long as its measurement lasts."""
    options = ("--device", "cpu", "--small", "--parts", "student")
    parent = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        cwd=project_root(),
        stdout=subprocess.DEVNULL,
    )
    children: list[int] = []
    until = time.monotonic() + 120
    while not children and time.monotonic() < until:
        time.sleep(0.2)
        children = [pid for pid in children_of(parent.pid) if "--child" in command_of(pid)]
    parent.kill()
    parent.wait()
    (child,) = children
    while "--child" in command_of(child) and time.monotonic() < until:
        time.sleep(0.1)
    assert "--child" not in command_of(child)


def children_of(pid: int) -> list[int]:
    """Ids of the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    """Command line of a process; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def check(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    return subprocess.run(command, cwd=project_root(), capture_output=True, text=True)


def test_without_a_card_each_part_is_a_row_and_the_exit_code_is_1() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    answer = check("--parts", "parity", "pocket")
    assert answer.returncode == 1
    rows = [line for line in answer.stdout.splitlines() if line.startswith(("parity", "pocket"))]
    assert len(rows) == 2 and all("failed" in row and "torch" in row for row in rows)


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--minutes", "0"), "above 0"), (("--parts", "nothing"), "invalid choice")],
)
def test_bad_options_are_refused_in_a_sentence(options: tuple[str, ...], says: str) -> None:
    answer = check(*options)
    assert answer.returncode == 2 and says in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs_at_tiny_size_on_a_cpu(tmp_path: Path) -> None:
    """Every measurement has its row: figures, or what it would have done on a card.

    A second call has nothing to do.
    """
    options = (
        "--device",
        "cpu",
        "--small",
        "--minutes",
        "60",  # parts get shares of it; on a quiet machine all take three
        "--json",
        str(tmp_path / "out.json"),
    )
    answer = check(*options)
    assert answer.returncode == 0, answer.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    for part in PARTS:
        own = [row for row in rows if row["part"] == part]
        assert any(row["figures"] for row in own), part
        assert {row["state"] for row in own} <= {"ok", "skipped"}, own
        assert all(
            row["why"].startswith("needs a CUDA device; would")
            for row in own
            if row["state"] == "skipped"
        )
    again = check(*options)
    assert again.returncode == 0
    assert again.stdout.lstrip().startswith("- ")  # the tables alone: nothing was measured
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
