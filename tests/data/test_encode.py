"""Stage latents: captions are encoded whole, or their clips are rejected by name."""

import json
from pathlib import Path

import pytest
import torch

from omniforcing.codec.text import TextEncoder
from omniforcing.core.latents import TextFeatures
from omniforcing.data import tensors
from omniforcing.data.encode import encode_shards
from omniforcing.data.inspect import inspect_folder
from omniforcing.data.shards import plan_shards, publish_shards, write_shards
from omniforcing.data.sources import Entry
from omniforcing.data.tensors import TextTable
from omniforcing.media.reading.conform import ClipFormat
from tests.support.refusals import refuses
from tests.support.tiny_artifact import write_parts
from tests.support.videos import MakeVideo

pytestmark = pytest.mark.extended

LONG = "a red ball bounces and then the blue ball rolls for a very long time"


@pytest.fixture
def shards(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Clips of four captions, of which one is too long and one has an unknown word."""
    video = make_video("video.mp4", seconds=1.5)
    captions = ["a red ball bounces", "a blue ball rolls", "a zebra", LONG]
    entries = []
    for number, caption in enumerate(captions):
        split = "heldout" if number == 1 else "train"
        provenance = {"source": "test", "name": f"{number}.mp4", "seconds": 1}
        entries.append(Entry(str(video), caption, split, 1, provenance))
    plans = plan_shards(entries, ClipFormat(64, 64, 1), 2)
    write_shards(plans, tmp_path / "work")
    (tmp_path / "shards").mkdir()
    publish_shards(plans, tmp_path / "work", tmp_path / "shards", 0.0)
    return tmp_path / "shards"


def test_a_clip_whose_caption_would_be_cut_is_rejected_and_counted(
    tmp_path: Path, shards: Path
) -> None:
    codec, latents, work = tmp_path / "codec", tmp_path / "latents", tmp_path / "latents-work"
    for folder in (codec, latents, work):
        folder.mkdir()
    write_parts(tmp_path / "student", codec)
    with refuses("data.too-many-rejects", "1 of 4", "1 caption too long", "3.mp4", "takes 32"):
        encode_shards(shards, latents, work, codec, "cpu", 2, 0.1)
    assert not list(work.iterdir())
    counts = encode_shards(shards, latents, work, codec, "cpu", 2, 0.25)
    assert counts == {
        "clips": 3,
        "captions": 3,
        "captions_with_unknown_words": 1,
        "rejected": 1,
    }
    manifest = json.loads((latents / "manifest.json").read_text())
    [reject] = manifest["rejects"]
    assert reject["name"] == "3.mp4" and manifest["reject_counts"] == {"caption too long": 1}
    assert manifest["tokens"]["unknown_words"] == {"zebra": 1}
    stored = TextTable.load(latents).captions
    assert list(stored) == ["", "a blue ball rolls", "a red ball bounces", "a zebra"]
    table = inspect_folder(latents)
    assert "caption too long" in table and "zebra" in table and "of the 32" in table


class CountingEncoder(TextEncoder):
    """A text encoder that notes what it is asked for, and how much at once."""

    def __init__(self, whole: TextEncoder, most: int) -> None:
        super().__init__(whole.prompts, whole.encoder, whole.connectors)
        self.most, self.asked = most, list[str]()

    @property
    def at_once(self) -> int:
        return self.most

    def encode(self, prompts: list[str]) -> TextFeatures:
        assert len(prompts) <= self.most
        self.asked += prompts
        return super().encode(prompts)


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    write_parts(tmp_path / "student", tmp_path / "codec")
    return TextEncoder.load(tmp_path / "codec" / "text")


CAPTIONS = [
    f"a {colour} ball {verb}" for colour in ("red", "blue") for verb in ("bounces", "rolls")
]


def test_captions_are_written_some_at_a_time_and_read_one_by_one(
    tmp_path: Path, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "ROWS", 2)
    done: list[int] = []
    tensors.write_text(tmp_path, CountingEncoder(encoder, 1), [*CAPTIONS, ""], done.append)
    assert done == [2, 2, 1]
    table = TextTable.load(tmp_path)
    assert list(table.captions) == ["", *sorted(CAPTIONS)] and len(table) == 5
    asked = [CAPTIONS[2], CAPTIONS[0], CAPTIONS[2]]
    for ours, theirs in zip(table.of(asked), encoder.encode(asked), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(table.of([""]).audio, table.unconditional.audio)
    with refuses("data.unknown-caption", "'a zebra'"):
        table.of(["a zebra"])


def test_captions_go_on_after_the_files_that_are_whole(
    tmp_path: Path, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "ROWS", 2)
    counting = CountingEncoder(encoder, 2)
    tensors.write_text(tmp_path, counting, CAPTIONS)
    whole = TextTable.load(tmp_path).of(CAPTIONS)
    (tmp_path / tensors.text_file(1)).unlink()
    (tmp_path / tensors.CAPTIONS_FILE).unlink()
    counting.asked.clear()
    tensors.write_text(tmp_path, counting, CAPTIONS)
    assert counting.asked == sorted(CAPTIONS)[1:3]
    again = TextTable.load(tmp_path).of(CAPTIONS)
    assert torch.equal(again.video, whole.video) and torch.equal(again.audio, whole.audio)


def test_features_without_their_captions_are_refused(
    tmp_path: Path, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "ROWS", 2)
    tensors.write_text(tmp_path, encoder, CAPTIONS)
    (tmp_path / tensors.text_file(2)).unlink()
    with refuses("data.stale-text", tmp_path, "2 files", "5 captions"):
        TextTable.load(tmp_path)
    (tmp_path / tensors.text_file(2)).write_bytes(b"cut")
    with refuses("file.unreadable", tmp_path / tensors.text_file(2), "latents"):
        TextTable.load(tmp_path)


def test_a_pass_takes_as_many_captions_as_their_states_leave_memory_for(
    encoder: TextEncoder,
) -> None:
    """Gemma 12B's take 770 MB a caption, so it takes one; a tiny one takes a file's."""
    assert encoder.at_once > tensors.ROWS
    encoder.connectors.config = {"caption_channels": 3840, "text_proj_in_factor": 49}
    encoder.prompts.limit = 1024
    assert encoder.at_once == 1
