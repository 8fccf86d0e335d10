"""Clips that look wrong next to the others are flagged, and stage shards leaves them out."""

from pathlib import Path

import numpy as np
import pytest

from omniforcing.cli import main
from omniforcing.core.files import read_json, write_json
from omniforcing.core.pair import Pair
from omniforcing.data.rejects import FLAGS_SCHEMA, read_flags
from omniforcing.data.shards import plan_shards, publish_shards, read_shards, write_shards
from omniforcing.data.sources import TRAIN, Entry
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.flags import SetOfClips, flag_shards
from omniforcing.media.files import write_mp4
from omniforcing.media.format import ClipFormat
from omniforcing.pocket.synthetic import make_clip
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended
COUNT, FORM = 14, ClipFormat(64, 64, 4)
LATE, SILENT, FROZEN, CUT_OFF = 2, 5, 8, 11


def media(index: int) -> Pair[np.ndarray]:
    """A pocket clip; four of them have something wrong with them."""
    clip = make_clip(9, index, 4, 64, 64)
    frames, sound = clip.frames, clip.samples
    if index == LATE:
        sound = np.roll(sound, 4000, 1)
    if index == SILENT:
        sound = 0 * sound
    if index == FROZEN:
        frames = frames.copy()
        frames[20:] = frames[20]
    if index == CUT_OFF:
        sound = np.clip(40 * sound, -1, 1)
    return Pair(frames, sound)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    folder, made = tmp_path_factory.mktemp("videos"), []
    for index in range(COUNT):
        path = folder / f"{index}.mp4"
        write_mp4(path, media(index))
        origin = {"source": "synthetic", "name": path.name}
        made.append(Entry(str(path), f"ball {index}", TRAIN, 1, origin))
    return made


@pytest.fixture(scope="module")
def shards(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    plans = plan_shards(entries, FORM, COUNT)
    write_shards(plans, root / "work")
    (root / "shards").mkdir()
    publish_shards(plans, root / "work", root / "shards", 0.0)
    return root / "shards"


def test_faulty_clips_are_flagged_with_their_fault_and_good_ones_are_not(shards: Path) -> None:
    found = flag_shards(shards)
    why = {clip.name: clip.why for clip in found.flagged}
    for index, fault in (
        (LATE, "out of sync"),
        (SILENT, "silent"),
        (FROZEN, "frozen"),
        (CUT_OFF, "clipped"),
    ):
        assert fault in why[f"{index}.mp4"], why
    assert found.clips == COUNT and len(why) <= 5, why  # one good clip at most


def test_shards_leave_out_what_was_flagged(
    shards: Path, entries: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "flags.json"
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(shards), "--out", str(tmp_path / "a.png"), "--flags", str(file)])
    assert end.value.code == 0 and "silent" in capsys.readouterr().out
    flags = read_flags(file)
    assert (f"{SILENT}.mp4", 0) in flags
    plans = plan_shards(entries, FORM, COUNT, flags=flags)
    assert plans[0].digest != plan_shards(entries, FORM, COUNT)[0].digest
    write_shards(plans, tmp_path / "work")
    (tmp_path / "out").mkdir()
    publish_shards(plans, tmp_path / "work", tmp_path / "out", 0.5)
    left = {sample["provenance"]["name"] for sample in read_shards(tmp_path / "out")}
    assert left == {entry.provenance["name"] for entry in entries} - {name for name, _ in flags}
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["reject_counts"] == {"flagged": len(flags)}
    assert any("silent" in reject["detail"] for reject in manifest["rejects"])


def test_a_list_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "flags.json", {"flags": []})
    with refuses("file.unknown-schema", "flags.json", "--flags"):
        read_flags(tmp_path / "flags.json")
    good = {"name": "a.mp4", "cut": 0, "why": "silent"}
    for flag, says in (
        (5, "flag 2: name is None"),
        ({"name": "a.mp4"}, "flag 2: cut is None"),
        ({**good, "cut": "0"}, "cut is '0'"),
        ({**good, "name": []}, "name is []"),
    ):
        write_json(tmp_path / "flags.json", {"schema": FLAGS_SCHEMA, "flags": [good, flag]})
        with refuses("data.malformed-flags", "flags.json", says):
            read_flags(tmp_path / "flags.json")
    write_json(tmp_path / "flags.json", {"schema": FLAGS_SCHEMA, "flags": 5})
    with refuses("file.unknown-schema", "flags.json"):
        read_flags(tmp_path / "flags.json")


def test_nothing_is_out_of_sync_in_a_set_without_sync() -> None:
    looked = SetOfClips([])
    clips = [make_clip(9, index, 4, 64, 64) for index in range(10)]
    for index, clip in enumerate(clips):
        looked.add(Clip(str(index), Pair(clip.frames, clips[(index + 5) % 10].samples)))
    rules, why = looked.rules()
    assert not rules and "no better than with other clips'" in why[0]
