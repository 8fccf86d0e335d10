"""The command that inspects and converts weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from benchmarks.published.transformer import tiny_core
from omniforcing.cli import main
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.command import check_destination
from omniforcing.pipeline.stages import teacher
from tests.support.refusals import refused, refuses
from tests.support.tiny_checkpoints import (
    save_authors,
    save_original,
    tiny_authors_core,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A Lightricks file, tiny, in bf16."""
    return save_original(tiny_core(dtype=torch.bfloat16), tmp_path / "ltx.safetensors")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["weights", *map(str, words)])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_inspect_shows_the_generation_the_parameters_and_the_convention(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", file) == 0
    shown = capsys.readouterr().out
    for part in (
        f"{file} (original format)",
        "LTX-2.0",
        "2 layers, 2 heads x 24 video, x 16 audio",
        "split, fp64",
    ):
        assert part in shown
    for part in (
        "sigma x 1000, cross-modal gates x 1000",
        "BF16",
        "video",
        "audio",
        "cross-modal",
        "vocoder. 1",
    ):
        assert part in shown


def test_inspect_prints_json_that_adds_up(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", file, "--json", "--values") == 0
    found = json.loads(capsys.readouterr().out)
    counts = found["parameters"]
    assert counts["total"] == counts["video"] + counts["audio"] + counts["cross-modal"]
    assert counts["total"] == sum(p.numel() for p in tiny_core().parameters())
    assert found["bytes"] == 2 * counts["total"]
    assert found["sinks"] == 0


def test_import_writes_a_folder_that_diffusers_opens_and_shows_progress(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = file.parent / "new" / "LTX-2"
    assert run("import", file, target, "--transformer-only") == 0
    printed = capsys.readouterr()
    assert str(target) in printed.out
    assert "writing: 100%" in printed.err
    opened = LTX2VideoTransformer3DModel.from_pretrained(
        target / "transformer", torch_dtype=torch.bfloat16, low_cpu_mem_usage=False
    )
    expected = tiny_core(dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())


def test_export_is_the_way_back_and_rope_is_exchanged_on_request(file: Path) -> None:
    folders = [file.parent / name for name in ("a", "b", "c")]
    assert run("import", file, folders[0], "--rope", "interleaved", "--transformer-only") == 0
    assert open_checkpoint(folders[0]).config["rope_type"] == "interleaved"
    assert run("export", folders[0], folders[1], "--rope", "split") == 0
    assert run("import", folders[1], folders[2], "--transformer-only") == 0
    expected = tiny_core(dtype=torch.bfloat16).state_dict()
    assert all(
        torch.equal(tensor, expected[name])
        for name, tensor in open_checkpoint(folders[2]).tensors()
    )


def test_a_folder_that_exists_is_never_written_over(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "mine").mkdir()
    (file.parent / "mine" / "notes.txt").write_text("dear")
    assert run("import", file, file.parent / "mine", "--transformer-only") == 2
    refused(capsys.readouterr().err, "file.exists", file.parent / "mine")
    assert (file.parent / "mine" / "notes.txt").read_text() == "dear"


def test_a_failed_conversion_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = tiny_core()
    core.audio_proj_out.bias.data[0] = torch.nan
    file = save_original(core, tmp_path / "ltx.safetensors")
    assert run("import", file, tmp_path / "out", "--transformer-only") == 2
    refused(capsys.readouterr().err, "weights.not-finite", "audio_proj_out.bias")
    assert list(tmp_path.iterdir()) == [file]
    assert run("inspect", file) == 0
    assert run("inspect", file, "--values") == 2


def test_a_disk_without_room_or_a_place_that_is_no_folder_is_named_first(tmp_path: Path) -> None:
    with refuses("disk.too-small", "weights", "1000000.0 GB"):
        check_destination(tmp_path / "new" / "weights", 10**15)
    (tmp_path / "file").write_text("")
    with refuses("file.cannot-write", tmp_path / "file" / "weights"):
        check_destination(tmp_path / "file" / "weights", 1)


def loading_stage(path: Path, folder: Path) -> Any:
    """As much of stage teacher as taking weights from ``path`` needs."""

    @contextmanager
    def publish() -> Iterator[Path]:
        yield folder

    config = SimpleNamespace(teacher=SimpleNamespace(path=str(path), loras=[], release="2.0"))
    return SimpleNamespace(
        config=config,
        publish=publish,
        work=folder,
        write_curves=lambda _: None,
        write_metrics=lambda _: None,
    )


def test_stage_teacher_takes_a_lightricks_file_bit_for_bit(file: Path) -> None:
    folder = file.parent / "teacher"
    folder.mkdir()
    teacher.load(loading_stage(file, folder))
    expected = tiny_core(dtype=torch.bfloat16).state_dict()
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in open_checkpoint(folder).tensors()
    )


def test_stage_teacher_refuses_another_release(tmp_path: Path) -> None:
    file = save_original(tiny_core("2.3"), tmp_path / "ltx.safetensors")
    with refuses("pipeline.other-release", "teacher.path", file, "LTX-2.3", "2.0"):
        teacher.load(loading_stage(file, tmp_path))


def test_stage_teacher_refuses_a_student(tmp_path: Path) -> None:
    index = save_authors(tiny_authors_core(), tmp_path, sinks=2)
    with refuses("pipeline.causal-teacher", "teacher.path", index):
        teacher.load(loading_stage(index, tmp_path))
