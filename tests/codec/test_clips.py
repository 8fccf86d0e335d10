"""Which clips the stage codec trains on."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from omniforcing.data.config import ClipsConfig
from omniforcing.data.memory import stack
from omniforcing.data.shards import plan_shards, publish_shards, read_shards, write_shards
from omniforcing.data.sources import TRAIN, read_clips, write_clips
from omniforcing.media.format import ClipFormat

pytestmark = pytest.mark.extended

CLIPS = 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("codec")
    for name in ("clips", "shards"):
        (work / name).mkdir()
    write_clips(
        ClipsConfig(count=CLIPS + 1, heldout=1, heldout_duets=0, seconds=1, height=32, width=32),
        0,
        work / "clips",
    )
    plans = plan_shards(read_clips(work / "clips"), ClipFormat(32, 32, 1), per_shard=3)
    write_shards(plans, work / "work")
    publish_shards(plans, work / "work", work / "shards", 0.0)
    return work / "shards"


@pytest.mark.parametrize(
    ("held", "count", "expected"),
    [
        (None, None, range(CLIPS)),
        (CLIPS, None, range(CLIPS)),
        (3, None, [0, 2, 4]),
        (2, 4, [0, 2]),
        (None, 4, range(4)),
        (0, None, [0]),
    ],
)
def test_clips_that_do_not_all_fit_are_evenly_spaced_over_the_split(
    shards: Path, held: int | None, count: int | None, expected: Sequence[int]
) -> None:
    stored = [torch.from_numpy(clip["media"].video) for clip in read_shards(shards, TRAIN)]
    largest = None if held is None else held * stored[0].nbytes + 1
    assert torch.equal(
        stack(shards, TRAIN, "video", count, largest),
        torch.stack([stored[index] for index in expected]),
    )
