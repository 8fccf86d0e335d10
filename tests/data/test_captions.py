"""Captions and names as people and their tools write them are taken, or a sentence says why not."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omniforcing.data.captions.files import Captions, read_captions
from omniforcing.data.config import ClipsConfig
from omniforcing.data.sources import Entry, read_clips, write_clips
from omniforcing.data.tars import dumps
from tests.support.refusals import refuses
from tests.support.videos import write_video

# Characters that Python, but neither JSON nor CSV, takes for the end of a line.
BREAKS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"
Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six short videos, no two alike."""
    place = tmp_path_factory.mktemp("stock")
    return [write_video(place / f"{n}.mp4", seconds=1.2) for n in range(6)]


@pytest.fixture
def folder(tmp_path: Path, stock: list[Path]) -> Folder:
    """``folder(*names)`` makes a folder that holds a video under each name."""

    def make(*names: str, place: str = "videos") -> Path:
        made = tmp_path / place
        for number, name in enumerate(names):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(stock[number + (2 if place != "videos" else 0)], made / name)
        return made

    return make


def clips(videos: Path) -> tuple[dict[str, Entry], dict[str, tuple[str, str]]]:
    """List a folder: the entries by name; reason and detail of the rejects by name."""
    out = videos.parent / "clips"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    settings: dict[str, Any] = {"seconds": 1, "heldout": 1, "max_reject_share": 0.9}
    found = write_clips(ClipsConfig(source="folder", folder=str(videos), **settings), 0, out)
    entries = {entry.provenance["name"]: entry for entry in read_clips(out)}
    return entries, {r["name"]: (r["reason"], r["detail"]) for r in found["rejects"]}


def captioned(videos: Path) -> dict[str, str]:
    entries, rejects = clips(videos)
    assert not rejects
    return {name: entry.caption for name, entry in entries.items()}


@pytest.mark.parametrize("kind", ["captions.jsonl", "captions.csv", "captions.json", "txt"])
@pytest.mark.parametrize("character", BREAKS, ids=ascii)
def test_a_line_separator_within_a_caption_is_a_space(
    folder: Folder, kind: str, character: str
) -> None:
    names, caption = ("a.mp4", "b.mp4"), f"a dog barks{character}at night"
    videos = folder(*names)
    rows = [{"video": name, "caption": caption} for name in names]
    texts = {
        "captions.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "captions.csv": "video,caption\r\n" + "\r\n".join(f"{n},{caption}" for n in names),
        "captions.json": json.dumps(rows, ensure_ascii=False),
    }
    if kind == "txt":
        for name in names:
            (videos / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    else:
        (videos / kind).write_text(texts[kind], encoding="utf-8", newline="")
    assert captioned(videos) == dict.fromkeys(names, "a dog barks at night")


def test_line_separators_within_names_are_kept(folder: Folder) -> None:
    names = ["a.mp4", *(f"x{character}y.mp4" for character in "\u2028\u0085\x1c\n")]
    videos = folder(*names)
    rows = [json.dumps({"video": n, "caption": "x"}, ensure_ascii=False) for n in names]
    (videos / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    entries, rejects = clips(videos)
    assert sorted(entries) == sorted(names) and not rejects
    assert all(Path(entry.path).is_file() for entry in entries.values())


def test_a_name_that_is_not_utf8_is_taken_and_written_with_its_bytes_escaped(
    folder: Folder,
) -> None:
    latin, mute = os.fsdecode(b"caf\xe9.mp4"), os.fsdecode(b"\xff.mp4")
    videos = folder("a.mp4", latin, mute)
    for name in ("a.mp4", latin):
        (videos / name).with_suffix(".txt").write_text("x")
    entries, rejects = clips(videos)
    assert sorted(entries) == ["a.mp4", "caf\\xe9.mp4"] and list(rejects) == ["\\xff.mp4"]
    assert rejects["\\xff.mp4"][0] == "no caption"
    entry = entries["caf\\xe9.mp4"]
    assert Path(entry.path) == videos / latin and Path(entry.path).is_file()
    assert dumps(entry.provenance).encode()


def forms(videos: Path, name: str) -> dict[str, str]:
    """The name of a video as other tools write it."""
    return {
        "absolute": str(videos / name),
        "another machine's": f"D:\\clips\\{name}",
        "url": (videos / name).as_uri(),
        "no suffix": name.rpartition(".")[0],
        "other case": name.upper(),
        "folder in front": f"{videos.name}/{name}",
        "url-encoded": name.replace(" ", "%20"),
        "without its folder": Path(name).name,
    }


@pytest.mark.parametrize("form", forms(Path("/v"), "a.mp4"))
def test_a_name_in_another_form_means_the_only_video_that_fits(folder: Folder, form: str) -> None:
    names = ["a b.mp4", "deep/c d.mp4"]
    videos = folder(*names)
    rows = [{"video": forms(videos, name)[form], "caption": name} for name in names]
    (videos / "captions.json").write_text(json.dumps(rows))
    assert captioned(videos) == {name: name for name in names}


def test_a_name_that_fits_several_videos_or_none_is_told(folder: Folder) -> None:
    videos = folder("x/a.mp4", "y/a.mp4", "holiday.mp4", "b.mp4", "c.mp4")
    rows = {"a.mp4": "either", "holidai.mp4": "near", "b.mp4": "own", "B": "other", "c.mp4": "x"}
    (videos / "captions.json").write_text(json.dumps(rows))
    entries, rejects = clips(videos)
    assert {name: entry.caption for name, entry in entries.items()} == {
        "b.mp4": "own",
        "c.mp4": "x",
    }
    assert rejects["a.mp4"][0] == rejects["B"][0] == "caption for a missing video"
    assert "did you mean 'holiday.mp4'" in rejects["holidai.mp4"][1]
    assert {rejects[name][0] for name in ("x/a.mp4", "y/a.mp4", "holiday.mp4")} == {"no caption"}


def test_two_forms_of_a_name_with_different_captions_are_a_contradiction() -> None:
    captions = Captions(texts={"A.MP4": "one", "v/a.mp4": "two", "b": "same", "B.mp4": "same"})
    captions.match(Path("/v"), ["a.mp4", "b.mp4"])
    assert captions.repeated == {"a.mp4"} and captions.texts["b.mp4"] == "same"


@pytest.mark.parametrize(
    "text",
    [
        "video;caption\na.mp4;a dog, barking\n",
        "sep=;\r\nvideo;caption\r\na.mp4;a dog, barking\r\n",
        "Video\tCaption\na.mp4\ta dog, barking\n",
        'id,PROMPT,File Name\n1,"a dog, barking",a.mp4\n',
        'text,path\n"a dog, barking",a.mp4,,\n',
        'caption,video_path\r"a dog, barking",a.mp4\r',
        '"video";"caption"\n"a.mp4";"a dog, barking"\n',
    ],
)
def test_columns_of_other_tools_and_countries_are_known(tmp_path: Path, text: str) -> None:
    (tmp_path / "captions.csv").write_bytes(text.encode())
    assert read_captions(tmp_path / "captions.csv").texts == {"a.mp4": "a dog, barking"}


def test_utf16_of_a_spreadsheet_and_tsv_are_read(tmp_path: Path) -> None:
    (tmp_path / "captions.tsv").write_text(
        "file_name\ttext\na.mp4\tein B\u00e4r", encoding="utf-16"
    )
    assert read_captions(tmp_path / "captions.tsv").texts == {"a.mp4": "ein B\u00e4r"}


@pytest.mark.parametrize(
    ("name", "text", "facts"),
    [
        ("captions.csv", "clip;words\na.mp4;x\n", ["'clip', 'words'", "video_path", "prompt"]),
        ("captions.csv", "video,caption\na.mp4,a dog, barking\n", ["line 2", "3 cells", "quote"]),
        ("captions.jsonl", '{"clip": "a.mp4", "words": "x"}\n', ["line 1", "'words'", "file_name"]),
    ],
)
def test_unknown_columns_and_stray_commas_are_named(
    tmp_path: Path, name: str, text: str, facts: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    with refuses("data.malformed-captions", name, *facts):
        read_captions(tmp_path / name)


def test_captions_beside_videos_come_as_tools_write_them(folder: Folder) -> None:
    videos = folder("a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4")
    (videos / "a.TXT").write_text("upper")
    (videos / "b.caption").write_text("kohya")
    (videos / "c.json").write_text('{"text": "json", "fps": 24}')
    (videos / "d.mp4.txt").write_text("whole name")
    (videos / "e.json").write_text('{"title": "no caption"}')
    (videos / "f.txt").write_text("one")
    (videos / "f.caption").write_text("two")
    entries, rejects = clips(videos)
    found = {name[0]: entry.caption for name, entry in entries.items()}
    assert found == {"a": "upper", "b": "kohya", "c": "json", "d": "whole name"}
    assert rejects["e.mp4"][0] == "no caption" and "'title'" in rejects["e.mp4"][1]
    assert rejects["f.mp4"] == ("captioned twice", "f.caption and f.txt give it different captions")


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("null\x00byte", "unusable caption"),
        ("bell\x07", "unusable caption"),
        ("half \ud83d", "unusable caption"),
        ("\u200b \ufeff", "no caption"),
    ],
)
def test_a_caption_that_is_no_text_is_rejected(folder: Folder, caption: str, reason: str) -> None:
    videos = folder("a.mp4", "b.mp4", "c.mp4")
    rows = {"a.mp4": caption, "b.mp4": "<b>&amp;</b> {x} %(y)s \U0001f436", "c.mp4": "x"}
    (videos / "captions.json").write_text(json.dumps(rows))
    entries, rejects = clips(videos)
    assert entries["b.mp4"].caption == rows["b.mp4"] and rejects["a.mp4"][0] == reason


def test_linked_folders_are_followed_once_and_circles_end(folder: Folder) -> None:
    videos, other = folder("a.mp4", "z/b.mp4"), folder("c.mp4", "d.mp4", place="other")
    (videos / "circle").symlink_to(videos, target_is_directory=True)
    (videos / "again").symlink_to(videos / "z", target_is_directory=True)
    (videos / "linked").symlink_to(other, target_is_directory=True)
    (videos / "twice").symlink_to(other, target_is_directory=True)
    (other / "back").symlink_to(videos, target_is_directory=True)
    (videos / "lost.mp4").symlink_to(videos / "nowhere.mp4")
    os.mkfifo(videos / "pipe.mp4")
    for path in (*videos.rglob("[ab].mp4"), *other.glob("*.mp4")):
        path.with_suffix(".txt").write_text("x")
    entries, rejects = clips(videos)
    assert sorted(entries) == ["a.mp4", "linked/c.mp4", "linked/d.mp4", "z/b.mp4"]
    assert {name: reason for name, (reason, _) in rejects.items()} == {
        "lost.mp4": "no file",
        "pipe.mp4": "no file",
    }


def test_other_suffixes_are_taken_and_a_captioned_file_of_an_unknown_one_is_told(
    folder: Folder,
) -> None:
    videos = folder("a.mp4", "b.F4V", "c.m2ts", "d.clip", "noend")
    for name in "abcd":
        (videos / f"{name}.txt").write_text("x")
    for name in ("noend.txt", "a.jpg", "a.wav", "README.md", "README.txt"):
        (videos / name).write_text("x")
    entries, rejects = clips(videos)
    assert sorted(entries) == ["a.mp4", "b.F4V", "c.m2ts"]
    assert {name: reason for name, (reason, _) in rejects.items()} == {
        "d.clip": "unknown suffix",
        "noend": "unknown suffix",
    }
    (videos / "captions.json").write_text('{"d.clip": "y"}')
    assert clips(videos)[0]["d.clip"].caption == "y"


def test_a_second_copy_is_rejected_and_the_captioned_one_kept(
    folder: Folder, stock: list[Path]
) -> None:
    videos = folder("a.mp4", "b.mp4")
    for copy in ("a (1).mp4", "A.mp4", "b copy.mp4"):
        shutil.copy(stock[0 if copy[0] in "aA" else 1], videos / copy)
    for name in ("a", "a (1)", "b copy"):
        (videos / f"{name}.txt").write_text("x")
    entries, rejects = clips(videos)
    assert sorted(entries) == ["a.mp4", "b copy.mp4"]
    assert rejects["a (1).mp4"] == ("duplicate", "it has the same bytes as a.mp4")
    assert rejects["A.mp4"][0] == rejects["b.mp4"][0] == "no caption"


def test_a_caption_file_that_is_missing_is_not_called_one_of_another_encoding(
    tmp_path: Path,
) -> None:
    with refuses("file.unreadable", "gone.json", "No such file"):
        read_captions(tmp_path / "gone.json")
