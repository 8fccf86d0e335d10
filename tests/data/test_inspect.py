"""The table counts what is there; the contact sheet shows it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from omniforcing.cli import main
from omniforcing.core.files import write_manifest
from omniforcing.data.config import ClipsConfig
from omniforcing.data.inspect import inspect_folder
from omniforcing.data.shards import plan_shards, publish_shards, write_shards
from omniforcing.data.sources import read_clips, write_clips
from omniforcing.data.tars import write_tar
from omniforcing.media.format import ClipFormat
from tests.support.refusals import refuses
from tests.support.videos import MakeVideo

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pocket")
    (root / "clips").mkdir()
    (root / "shards").mkdir()
    write_clips(
        ClipsConfig(count=6, heldout=2, heldout_duets=0, seconds=2, height=64, width=64),
        0,
        root / "clips",
    )
    (root / "clips" / "clips" / "000001.mp4").write_bytes(b"junk")
    plans = plan_shards(read_clips(root / "clips"), ClipFormat(64, 64, 2), 4)
    write_shards(plans, root / "work")
    publish_shards(plans, root / "work", root / "shards", 0.5)
    return root / "shards"


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "__key__": f"{n:06d}",
            "safetensors": save(
                {
                    "video": torch.randn(16, 7, 4, 4, generator=generator).half(),
                    "audio": torch.randn(51, 16, generator=generator),
                }
            ),
            "txt": "a red ball",
            "json": {"source": "synthetic", "seconds": 2},
        }
        for n in range(3)
    ]
    write_tar(tmp_path / "train-000000.tar", samples)
    write_manifest(tmp_path, {"kind": "latents"})
    return tmp_path


def test_table_counts_clips_captions_time_and_rejects(shards: Path) -> None:
    table = inspect_folder(shards)
    assert "shards, 64x64, 2 s a clip" in table
    assert (
        "duration: 10 s" in table and "captions: 5" in table and "sources: 5 (1 different)" in table
    )
    assert "rejects: 1 (1 different)" in table and "1  not a readable video" in table
    rows = dict(
        line.split()[:2]
        for line in table.splitlines()
        if ".tar" in line or line.startswith("total")
    )
    assert rows == {"train-000000.tar": "3", "heldout-000000.tar": "2", "total": "5"}


def test_silent_clips_and_training_clips_that_look_like_held_out_clips_are_told(
    tmp_path: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        samples = None if name == "a" else np.zeros((2, 36000), np.float32)
        path = make_video(f"videos/{name}.mp4", seconds=2.2, events=(0.5,), samples=samples)
        path.with_suffix(".txt").write_text("a flash")
    for name in ("clips", "shards"):
        (tmp_path / name).mkdir()
    config = ClipsConfig(
        source="folder", folder=str(tmp_path / "videos"), seconds=2, height=64, width=64, heldout=1
    )
    write_clips(config, 0, tmp_path / "clips")
    plans = plan_shards(read_clips(tmp_path / "clips"), config.form, 4)
    write_shards(plans, tmp_path / "work")
    found = publish_shards(plans, tmp_path / "work", tmp_path / "shards", 0.0)
    assert found["loudness"] == {"silent": 2, "faint": 0}
    pairs = found["near_duplicates"]
    assert [pair["bits"] for pair in pairs] == [0, 0] and len({p["heldout"] for p in pairs}) == 1
    assert found["clips"]["train"] == 2
    told = capsys.readouterr().err
    assert "2 training clips look like held-out clips" in told and "near_duplicates=reject" in told
    table = inspect_folder(tmp_path / "shards")
    assert "2  silent" in table and "1  heard" in table
    assert "training clips that look like held-out clips: 2" in table


def test_sheet_shows_frames_over_sound_of_several_clips(shards: Path, tmp_path: Path) -> None:
    inspect_folder(shards, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert sheet.shape[0] > 5 * 150 and sheet.shape[1] > 900
    vivid = (sheet.max(-1) - sheet.min(-1)) > 80
    assert vivid.any(1).sum() > 300


def test_command_writes_beside_the_folder_and_prints_the_table(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(shards)])
    assert end.value.code == 0
    assert "rejects: 1" in capsys.readouterr().out
    assert shards.with_name("shards.png").is_file()
    assert not list(shards.glob("*.png"))


def test_latents_are_counted_and_drawn(latents: Path, tmp_path: Path) -> None:
    table = inspect_folder(latents, tmp_path / "heat.png")
    assert "latents" in table and "duration: 6 s" in table and "3  a red ball" in table
    assert Image.open(tmp_path / "heat.png").height > 3 * 160


def test_folders_of_other_kinds_and_unwritable_sheets_are_one_sentence(
    shards: Path, tmp_path: Path
) -> None:
    with refuses("file.missing", "gone"):
        inspect_folder(tmp_path / "gone")
    with refuses("data.wrong-folder", "manifest.json", "a clip"):
        inspect_folder(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "teacher", "files": {}}))
    with refuses("data.wrong-folder", tmp_path, "teacher"):
        inspect_folder(tmp_path)
    with refuses("file.cannot-write", "sheet.png"):
        inspect_folder(shards, tmp_path / "gone" / "sheet.png")
