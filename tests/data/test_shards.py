"""Shards are the same bytes every time, survive a kill, and are never read incomplete."""

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniforcing.data.config import ClipsConfig
from omniforcing.data.shards import (
    ShardPlan,
    plan_shards,
    publish_shards,
    read_shards,
    write_shards,
)
from omniforcing.data.sources import read_clips, write_clips
from omniforcing.media.format import ClipFormat
from tests.support.limits import files_of_at_most
from tests.support.refusals import refuses
from tests.support.videos import MakeVideo

pytestmark = pytest.mark.extended

FORM = ClipFormat(32, 32, 1)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven synthetic clips of a second, three of them held out."""
    folder = tmp_path_factory.mktemp("clips")
    write_clips(
        ClipsConfig(count=11, heldout=3, heldout_duets=0, seconds=1, height=32, width=32), 0, folder
    )
    return folder


def plans(clips: Path, form: ClipFormat = FORM) -> list[ShardPlan]:
    return plan_shards(read_clips(clips), form, 4)


def make_shards(
    clips: Path, folder: Path, form: ClipFormat = FORM, most: float = 0.2
) -> dict[str, Any]:
    folder.mkdir()
    work = folder.with_suffix(".work")
    write_shards(plans(clips, form), work)
    return publish_shards(plans(clips, form), work, folder, most)


@pytest.fixture
def shards(synthetic: Path, tmp_path: Path) -> Path:
    make_shards(synthetic, tmp_path / "shards")
    return tmp_path / "shards"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rewrite(tar: Path, keep: Callable[[int, tarfile.TarInfo], bool]) -> None:
    """Write the members of a tar that ``keep`` accepts, and an index that agrees with its size."""
    members = []
    with tarfile.open(tar) as file:
        for number, member in enumerate(file.getmembers()):
            if keep(number, member):
                content = file.extractfile(member)
                assert content is not None
                members.append((member, content.read()))
    with tarfile.open(tar, "w") as file:
        for member, data in members:
            file.addfile(member, io.BytesIO(data))
    index = json.loads(tar.with_suffix(".json").read_text())
    tar.with_suffix(".json").write_text(json.dumps({**index, "bytes": tar.stat().st_size}))


def test_every_clip_is_there_once_in_its_split_with_its_truth(
    shards: Path, synthetic: Path
) -> None:
    assert sorted(p.name for p in shards.glob("*.tar")) == [
        "heldout-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
    ]
    entries = read_clips(synthetic)
    for split, count in (("train", 8), ("heldout", 3)):
        samples = list(read_shards(shards, split))
        assert len(samples) == count
        for sample in samples:
            entry = entries[int(sample["key"])]
            truth = sample["provenance"]
            assert entry.split == split == truth["split"] and sample["caption"] == entry.caption
            assert truth["impacts"] == entry.provenance["impacts"] and truth["schema"] == 1
            assert sample["media"].video.shape == (25, 32, 32, 3) and sample[
                "media"
            ].audio.shape == (2, 16000)
    assert len(list(read_shards(shards))) == 11
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["clips"] == {"train": 8, "heldout": 3, "duets": 0} and manifest["rejects"] == []


def test_same_clips_give_the_same_bytes(shards: Path, synthetic: Path, tmp_path: Path) -> None:
    make_shards(synthetic, tmp_path / "again")
    assert content(shards) == content(tmp_path / "again")


def test_long_video_with_awkward_name_gives_several_clips_with_start_times(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    for name in ("v/a.b ü {1}.mp4", "v/b.mp4"):
        make_video(name, seconds=3.2, fps=30, rate=44100, size=(48, 80), events=(0.5, 1.5, 2.5))
        (tmp_path / name).with_suffix(".txt").write_text("flashes")
    (tmp_path / "clips").mkdir()
    config = ClipsConfig(
        source="folder", folder=str(tmp_path / "v"), seconds=1, height=32, width=32, heldout=1
    )
    write_clips(config, 0, tmp_path / "clips")
    assert make_shards(tmp_path / "clips", tmp_path / "shards")["clips"] == {
        "train": 3,
        "heldout": 3,
        "duets": 0,
    }
    samples = list(read_shards(tmp_path / "shards"))
    assert all("." not in sample["key"] for sample in samples)
    assert [s["provenance"]["start"] for s in samples] == [0.0, 1.0, 2.0] * 2
    for sample in samples:
        sound = np.abs(sample["media"].audio).max(0)
        assert np.flatnonzero(sound > 0.2)[0] / 16000 == pytest.approx(0.5, abs=0.001)
        assert np.flatnonzero(sample["media"].video.mean((1, 2, 3)) > 200)[0] / 24 == pytest.approx(
            0.5, abs=1 / 24
        )


def test_clip_that_breaks_after_probing_is_a_counted_reject_and_moves_no_other(
    synthetic: Path, shards: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    (copy / "clips").mkdir(parents=True)
    for path in [synthetic / "clips.jsonl", *(synthetic / "clips").iterdir()]:
        (copy / path.relative_to(synthetic)).write_bytes(path.read_bytes())
    (copy / "clips" / "000001.mp4").write_bytes(b"junk")
    (copy / "clips" / "000009.mp4").unlink()
    found = make_shards(copy, tmp_path / "fewer")
    assert found["reject_counts"] == {"not a readable video": 2} and found["clips"] == {
        "train": 7,
        "heldout": 2,
        "duets": 0,
    }
    assert [r["name"] for r in found["rejects"]] == ["clips/000001.mp4", "clips/000009.mp4"]
    assert (tmp_path / "fewer" / "train-000001.tar").read_bytes() == (
        shards / "train-000001.tar"
    ).read_bytes()
    assert "000002" in {sample["key"] for sample in read_shards(tmp_path / "fewer")}
    with refuses("data.too-many-rejects", "2 of 11", "2 not a readable video", "clips/000001"):
        make_shards(copy, tmp_path / "strict", most=0.1)


def test_training_clips_that_look_like_held_out_ones_are_rejected_if_the_config_says_so(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    """Three recordings of one scene without a sound, three of another with a click."""
    scenes = {"silent": "abc", "heard": "def"}
    silence = np.zeros((2, 24000), np.float32)
    looks: tuple[dict[str, Any], ...] = ({"samples": silence}, {"rotation": 180})
    for scene, how in zip(scenes.values(), looks, strict=True):
        for name in scene:
            make_video(f"v/{name}.mp4", seconds=1.5, events=(0.2,), **how)
            (tmp_path / "v" / f"{name}.txt").write_text("a flash")
    (tmp_path / "clips").mkdir()
    config = ClipsConfig(
        source="folder", folder=str(tmp_path / "v"), seconds=1, height=32, width=32, heldout=1
    )
    write_clips(config, 0, tmp_path / "clips")
    [held] = [Path(e.path).stem for e in read_clips(tmp_path / "clips") if e.split == "heldout"]
    same, other = sorted(scenes.values(), key=lambda names: held not in names)
    planned = plans(tmp_path / "clips")
    write_shards(planned, tmp_path / "work")
    with refuses("data.too-many-rejects", "2 of 6", "2 near duplicate"):
        publish_shards(planned, tmp_path / "work", tmp_path / "out", 0.2, reject_near=True)
    (tmp_path / "out").mkdir()
    found = publish_shards(planned, tmp_path / "work", tmp_path / "out", 0.5, reject_near=True)
    assert found["clips"] == {"train": 3, "heldout": 1, "duets": 0}
    assert found["reject_counts"] == {"near duplicate": 2} and found["near_duplicates"] == []
    assert {Path(r["name"]).stem for r in found["rejects"]} == set(same) - {held}
    kept = {Path(s["provenance"]["name"]).stem for s in read_shards(tmp_path / "out")}
    assert kept == {held, *other}
    assert found["loudness"]["silent"] == len(set(scenes["silent"]) & kept)


def test_killed_run_continues_with_the_first_unfinished_shard(
    synthetic: Path, shards: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    script = f"""
import sys, time
from pathlib import Path
from omniforcing.data import shards, sources
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.isolated import Isolated
class Slow(Isolated):
    def __call__(self, *arguments, **options):
        time.sleep(0.1)
        return super().__call__(*arguments, **options)
packer = shards.Packer
shards.Packer = lambda work: packer(work, Slow())
plans = shards.plan_shards(sources.read_clips(Path({str(synthetic)!r})), ClipFormat(32, 32, 1), 4)
shards.write_shards(plans, Path({str(work)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (work / "train-000000.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (work / "heldout-000000.json").exists()
    before = (work / "train-000000.tar").stat().st_mtime_ns
    write_shards(plans(synthetic), work)
    assert (work / "train-000000.tar").stat().st_mtime_ns == before
    (tmp_path / "resumed").mkdir()
    publish_shards(plans(synthetic), work, tmp_path / "resumed", 0.2)
    assert content(tmp_path / "resumed") == content(shards)


def test_finished_shards_of_another_form_are_made_again(synthetic: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    write_shards(plans(synthetic, ClipFormat(64, 64, 1)), work)
    write_shards(plans(synthetic), work)
    (tmp_path / "out").mkdir()
    publish_shards(plans(synthetic), work, tmp_path / "out", 0.2)
    assert next(iter(read_shards(tmp_path / "out")))["media"].video.shape == (25, 32, 32, 3)


def assert_refused(shards: Path, code: str, *facts: object) -> None:
    with refuses(code, *facts):
        list(read_shards(shards))


def test_tar_cut_at_a_members_border_is_noticed(shards: Path) -> None:
    tar = shards / "train-000000.tar"
    with tarfile.open(tar) as file:
        border = file.getmembers()[6].offset
    tar.write_bytes(tar.read_bytes()[:border])
    assert_refused(shards, "data.damaged-shard", "train-000000.tar", f"{border} bytes")
    # Even when the index agrees with the size, the number of samples does not.
    rewrite(tar, lambda number, _: number < 6)
    assert_refused(shards, "data.damaged-shard", "train-000000.tar", "2 samples", "4")


def test_missing_member_is_noticed(shards: Path) -> None:
    rewrite(shards / "train-000001.tar", lambda number, _: number != 4)
    assert_refused(shards, "data.damaged-shard", "train-000001.tar", "000005", ".mp4")


def test_damaged_shard_is_named(shards: Path) -> None:
    tar = shards / "heldout-000000.tar"
    half = tar.read_bytes()[:3000]
    tar.write_bytes(half + bytes(tar.stat().st_size - 3000))
    assert_refused(shards, "data.damaged-shard", "heldout-000000.tar")
    tar.unlink()
    assert_refused(shards, "file.missing", "heldout-000000.tar")
    tar.with_suffix(".json").unlink()
    assert_refused(shards, "file.missing", "heldout-000000.json")


def test_clip_of_another_form_is_named(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["form"]["seconds"] = 2
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(shards, "data.damaged-shard", "heldout-000000.tar", "000008", "expected")


def test_wrong_folder_and_missing_split_are_one_sentence(
    shards: Path, synthetic: Path, tmp_path: Path
) -> None:
    with refuses("data.wrong-folder", "clips", "shards"):
        list(read_shards(synthetic))
    with refuses("file.missing", "manifest.json"):
        list(read_shards(tmp_path))
    with refuses("data.no-shards", "validation"):
        list(read_shards(shards, "validation"))


def test_full_disk_is_one_sentence_and_leaves_finished_shards_alone(
    synthetic: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    write_shards(plans(synthetic)[:1], work)
    before = content(work)
    with (
        files_of_at_most(30_000),
        refuses("disk.full", "train-000001.tar"),
    ):
        write_shards(plans(synthetic), work)
    assert content(work) == before
    (tmp_path / "clips").mkdir()
    with (
        files_of_at_most(5_000),
        refuses("disk.full", "clips"),
    ):
        write_clips(ClipsConfig(count=3, heldout=1, seconds=1), 0, tmp_path / "clips")
