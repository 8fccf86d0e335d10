"""Folders of people: what lies beside videos, what goes away, and what is held out of few files."""

import unicodedata
from pathlib import Path

import pytest

from omniforcing.data.captions.files import Captions, read_captions
from omniforcing.data.sources import Entry, hold_out
from omniforcing.media.reading.tracks import Rejected


def entry(name: str, cuts: int) -> Entry:
    return Entry(f"/videos/{name}", "a ball", "train", cuts, {"name": name})


def test_a_long_file_is_not_held_out_where_short_ones_will_do() -> None:
    for number in range(8):  # in other orders, which follow from the names
        cuts = (60, 1, 1, 1)
        entries = [entry(f"{number}{place}.mp4", count) for place, count in enumerate(cuts)]
        found = hold_out(entries, 6, [])
        assert found[0].split == "train"
        assert 1 <= sum(each.split == "heldout" for each in found) <= 3


def test_of_files_that_are_all_long_the_shortest_is_held_out() -> None:
    found = hold_out([entry("a.mp4", 60), entry("b.mp4", 50)], 6, [])
    assert [each.split for each in found] == ["train", "heldout"]


def test_a_text_in_another_case_or_unicode_form_is_beside_its_video(tmp_path: Path) -> None:
    video = unicodedata.normalize("NFD", "é.mp4")
    for name in (video, "CLIP.MP4", "a.mp4", "A.mp4"):
        (tmp_path / name).touch()
    (tmp_path / unicodedata.normalize("NFC", "é.txt")).write_text("one")
    (tmp_path / "clip.txt").write_text("two")
    (tmp_path / "a.txt").write_text("three")
    captions = Captions()
    assert captions.of(tmp_path, video) == "one"
    assert captions.of(tmp_path, "CLIP.MP4") == "two"
    assert captions.of(tmp_path, "a.mp4") == "three"
    with pytest.raises(Rejected):  # it may be that of either
        captions.of(tmp_path, "A.mp4")


def test_a_name_that_stands_twice_in_an_object_is_captioned_twice(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    file.write_text('{"a.mp4": "one", "a.mp4": "two"}')
    assert read_captions(file).repeated == {"a.mp4"}


def test_a_very_long_caption_is_read(tmp_path: Path) -> None:
    file = tmp_path / "captions.csv"
    file.write_text("video,caption\na.mp4," + "word " * 40000)
    assert len(read_captions(file).texts["a.mp4"]) > 190_000
