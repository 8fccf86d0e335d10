"""Stage latents: captions are encoded whole, or their clips are rejected by name."""

import json
from pathlib import Path

import pytest

from omniforcing.data.encode import encode_shards
from omniforcing.data.inspect import inspect_folder
from omniforcing.data.shards import plan_shards, publish_shards, write_shards
from omniforcing.data.sources import Entry
from omniforcing.data.tensors import TextTable
from omniforcing.media.reading.conform import ClipFormat
from tests.support.refusals import refuses
from tests.support.tiny_artifact import write_parts
from tests.support.videos import MakeVideo

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
