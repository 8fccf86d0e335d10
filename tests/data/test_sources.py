"""A folder of anybody's videos becomes clips.jsonl: nothing is lost silently, nothing ends in a
traceback.
"""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from omniforcing.data.captions.files import read_captions
from omniforcing.data.config import ClipsConfig
from omniforcing.data.sources import read_clips, write_clips
from omniforcing.pipeline.config import load_config
from tests.support.refusals import refuses
from tests.support.videos import MakeVideo


@pytest.fixture
def videos(tmp_path: Path, make_video: MakeVideo) -> Path:
    """A folder with three good videos."""
    for name in ("one.mp4", "deep/two.v2.mp4", "drei große.mp4"):
        make_video(f"videos/{name}", seconds=2.2)
    return tmp_path / "videos"


def config(videos: Path, **other: Any) -> ClipsConfig:
    usual: dict[str, Any] = {
        "source": "folder",
        "folder": str(videos),
        "seconds": 1,
        "heldout": 1,
        "max_reject_share": 0.9,
    }
    return ClipsConfig(**usual | other)


def clips(
    tmp_path: Path, config: ClipsConfig
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Run the stage's function.

    The entries by name, the reject reasons by name, and what it returned.
    """
    out = tmp_path / "clips"
    out.mkdir(exist_ok=True)
    found = write_clips(config, 0, out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rejects"] == found["rejects"] and manifest["kind"] == "clips"
    return (
        {e.provenance["name"]: e for e in read_clips(out)},
        {r["name"]: r["reason"] for r in found["rejects"]},
        found,
    )


ROWS = [("one.mp4", "a, b"), ("deep/two.v2.mp4", 'say "c"'), ("drei große.mp4", "ein  Bär\n")]
CAPTION_FILES = {
    "captions.json": json.dumps([{"video": v, "caption": c} for v, c in ROWS]),
    "captions.jsonl": "\n".join(json.dumps({"video": v, "caption": c, "other": 1}) for v, c in ROWS)
    + "\n\n",
    "captions.csv": "\ufeffcaption,video\n"
    + "".join('"{}",{}\n'.format(c.replace('"', '""'), v) for v, c in ROWS),
    "map.json": json.dumps(dict(ROWS)),
}


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_captions_are_read_in_every_format(tmp_path: Path, videos: Path, name: str) -> None:
    (videos / name).write_text(CAPTION_FILES[name], encoding="utf-8")
    entries, rejects, found = clips(
        tmp_path, config(videos, captions=name if name == "map.json" else None)
    )
    assert {n: e.caption for n, e in entries.items()} == {v: " ".join(c.split()) for v, c in ROWS}
    assert not rejects and found["sources"] == 3 and sum(found["clips"].values()) == 6


def test_captions_beside_the_videos_are_read(tmp_path: Path, videos: Path) -> None:
    for name, caption in ROWS:
        (videos / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    assert len(clips(tmp_path, config(videos))[0]) == 3


def test_accents_match_in_any_unicode_form(tmp_path: Path, videos: Path) -> None:
    (videos / "captions.json").write_text(
        json.dumps({unicodedata.normalize("NFD", v): c for v, c in ROWS}), encoding="utf-8"
    )
    assert len(clips(tmp_path, config(videos))[0]) == 3


def test_each_reject_is_counted_with_its_reason(
    tmp_path: Path, videos: Path, make_video: MakeVideo
) -> None:
    for name in (
        "mute.mp4",
        "short.mp4",
        "tiny.mp4",
        "uncaptioned.mp4",
        "cut.mp4",
        "latin.mp4",
        "twice.mp4",
        "blank.mp4",
    ):
        changes: dict[str, dict[str, Any]] = {
            "mute": {"audio": None},
            "short": {"seconds": 0.6},
            "tiny": {"size": (16, 16)},
        }
        how = changes.get(name[:-4], {})
        make_video(f"videos/{name}", movflags="+faststart", **how)
    make_video("videos/blind.mp4", video=False)
    (videos / "cut.mp4").write_bytes((videos / "cut.mp4").read_bytes()[:-300])
    (videos / "empty.mp4").touch()
    (videos / "junk.mov").write_bytes(b"this is no video" * 99)
    (videos / "latin.txt").write_bytes("Bär".encode("latin-1"))
    bad = ("mute.mp4", "short.mp4", "tiny.mp4", "blind.mp4", "cut.mp4", "empty.mp4", "junk.mov")
    captioned = [*ROWS, *((name, "x") for name in bad)]
    captioned += [("gone.mp4", "x"), ("twice.mp4", "x"), ("twice.mp4", "y"), ("blank.mp4", "  ")]
    (videos / "captions.jsonl").write_text(
        "\n".join(json.dumps({"video": v, "caption": c}) for v, c in captioned)
    )
    entries, rejects, found = clips(tmp_path, config(videos))
    assert sorted(entries) == sorted(v for v, _ in ROWS)
    assert rejects == {
        "mute.mp4": "no audio track",
        "blind.mp4": "no video track",
        "short.mp4": "too short",
        "tiny.mp4": "too small",
        "cut.mp4": "truncated",
        "empty.mp4": "empty file",
        "junk.mov": "not a readable video",
        "uncaptioned.mp4": "no caption",
        "blank.mp4": "no caption",
        "latin.mp4": "unreadable caption",
        "twice.mp4": "captioned twice",
        "gone.mp4": "caption for a missing video",
    }
    assert found["reject_counts"]["no caption"] == 2 and sum(found["reject_counts"].values()) == 12
    with refuses("data.too-many-rejects", "12 of 15", "1 too small", "clips.max_reject_share"):
        clips(tmp_path, config(videos, max_reject_share=0.2))


@pytest.mark.parametrize(
    ("name", "content", "code", "named"),
    [
        ("captions.json", b'[{"video": "one.mp4"', "data.malformed-captions", "not json"),
        ("captions.json", b'"just text"', "data.malformed-captions", "just text"),
        (
            "captions.jsonl",
            b'{"video": "one.mp4", "caption": "x"}\n{"video": 3}\n',
            "data.malformed-captions",
            "line 2",
        ),
        ("captions.csv", b"name,text\none.mp4,x\n", "data.malformed-captions", "'name', 'text'"),
        ("captions.csv", b'video,caption\none.mp4,"x\n', "data.malformed-captions", "line 1"),
        ("captions.csv", b"video,caption\none.mp4\n", "data.malformed-captions", "line 2"),
        ("captions.json", b"\xff\xfe\x00", "file.unreadable", "UTF-8"),
    ],
)
def test_unreadable_caption_file_is_one_sentence_that_names_it(
    videos: Path, tmp_path: Path, name: str, content: bytes, code: str, named: object
) -> None:
    (videos / name).write_bytes(content)
    with refuses(code, name, named):
        clips(tmp_path, config(videos))


def test_wrong_places_are_one_sentence(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "none").mkdir()
    (videos / "captions.xlsx").touch()
    for how, code, named in [
        ({"folder": str(tmp_path / "gone")}, "file.not-a-folder", "clips.folder"),
        ({"folder": str(tmp_path / "none")}, "data.no-clips", tmp_path / "none"),
        ({"captions": "gone.json"}, "file.missing", "clips.captions"),
        ({"captions": "captions.xlsx"}, "data.unknown-caption-format", "captions.xlsx"),
    ]:
        with refuses(code, named):
            clips(tmp_path, config(videos, **how))
    for name in ("captions.json", "captions.csv"):
        (videos / name).touch()
    with refuses("data.several-caption-files", "captions.json", "captions.csv"):
        clips(tmp_path, config(videos))


@pytest.mark.extended
def test_held_out_videos_are_whole_files_and_always_the_same(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    names = [f"{i}.mp4" for i in range(8)]
    for name in names:
        make_video(f"videos/{name}", seconds=2.2)
    (tmp_path / "videos" / "captions.json").write_text(json.dumps({n: "x" for n in names}))
    first = clips(tmp_path, config(tmp_path / "videos", heldout=4))[0]
    held = {n for n, e in first.items() if e.split == "heldout"}
    assert sum(first[n].cuts for n in held) == 4
    (tmp_path / "videos" / "0.mp4").touch()
    assert {
        n
        for n, e in clips(tmp_path, config(tmp_path / "videos", heldout=4))[0].items()
        if e.split == "heldout"
    } == held
    many = clips(tmp_path, config(tmp_path / "videos", heldout=1000))[0]
    assert 1 <= sum(e.split == "heldout" for e in many.values()) <= 2


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 2), (4, 2)])
def test_a_small_folder_holds_out_two_clips_and_leaves_some_to_train_on(
    count: int, held: int, tmp_path: Path, make_video: MakeVideo
) -> None:
    for index in range(count):
        make_video(f"videos/{index}.mp4", seconds=1.2)
        (tmp_path / "videos" / f"{index}.txt").write_text("x")
    found = clips(tmp_path, config(tmp_path / "videos", heldout=64))[0]
    assert sum(entry.split == "heldout" for entry in found.values()) == held


def test_a_single_video_leaves_nothing_to_hold_out(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video("videos/a.mp4")
    (tmp_path / "videos" / "a.txt").write_text("x")
    with refuses("data.too-few-clips", "a.mp4"):
        clips(tmp_path, config(tmp_path / "videos"))
    for name in ("a.mp4", "a.txt"):  # a copy is no second video, and the error says so
        shutil.copy(tmp_path / "videos" / name, tmp_path / "videos" / f"b{name}")
    with refuses("data.too-few-clips", "a.mp4", "1 duplicate", "ba.mp4"):
        clips(tmp_path, config(tmp_path / "videos", max_reject_share=0.5))
    with refuses("data.too-many-rejects", "1 duplicate", "ba.mp4"):
        clips(tmp_path, config(tmp_path / "videos", max_reject_share=0.2))


def test_synthetic_clips_are_files_like_any_other_with_the_truth_beside(tmp_path: Path) -> None:
    settings = ClipsConfig(
        count=5, duets=0.4, heldout=2, heldout_duets=1, seconds=1, height=32, width=32
    )
    entries, rejects, found = clips(tmp_path, settings)
    assert not rejects and found["clips"] == {"train": 3, "heldout": 2, "duets": 1}
    entry = entries["clips/000004.mp4"]
    assert (
        entry.split == "heldout"
        and entry.cuts == 1
        and entry.provenance["impacts"]
        and entry.provenance["colours"]
    )
    assert (tmp_path / "clips" / "clips" / "000004.mp4").stat().st_size > 1000
    balls = {
        split: [len(e.provenance["colours"]) for e in entries.values() if e.split == split]
        for split in found["clips"]
    }
    assert balls == {"train": [1, 1, 2], "heldout": [1, 1], "duets": [2]}


IMPOSSIBLE = [
    "clips.duets=1.5",
    "clips.heldout_duets=-1",
    "clips.heldout=-1",
    "clips.heldout=1536",
    "clips.max_reject_share=1.5",
]


@pytest.mark.extended
@pytest.mark.parametrize("override", [*IMPOSSIBLE, "shards.per_shard=0"])
def test_impossible_settings_are_refused_by_name(override: str) -> None:
    with refuses("config.out-of-range", override.split("=")[0]):
        load_config([override])


def test_the_same_caption_twice_is_no_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(
        json.dumps([{"video": "a.mp4", "caption": "x"}, {"video": "./a.mp4", "caption": "x"}])
    )
    captions = read_captions(path)
    assert captions.texts == {"a.mp4": "x"} and not captions.repeated
