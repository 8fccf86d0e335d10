"""A checkpoint is whole or absent, on a full disk too."""

import errno
from pathlib import Path

import pytest
import torch

from omniforcing.training import checkpoints
from tests.support.limits import files_of_at_most
from tests.support.refusals import refuses


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / checkpoints.WHOLE
    checkpoints.Atomic().save_checkpoint({"step": 1}, path)
    with files_of_at_most(50_000):
        checkpoints.Atomic().save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
    assert "the disk is full" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert checkpoints.Atomic().load_checkpoint(path) == {"step": 1}
    checkpoints.Atomic().save_checkpoint({"step": 3}, path)
    assert checkpoints.Atomic().load_checkpoint(path) == {"step": 3}


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def broken() -> None:
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        checkpoints.unless_full(broken, tmp_path / checkpoints.WHOLE)


def test_the_last_whole_checkpoint_of_ones_own_kind_is_found(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path, sharded=True) is None
    for name in ("epoch-000002.shards", "epoch-000010.shards", ".epoch-000011.shards.tmp"):
        (tmp_path / name).mkdir()
    found = checkpoints.latest(tmp_path, sharded=True)
    assert found is not None and found.name == "epoch-000010.shards"
    with refuses("training.other-strategy", "epoch-000010.shards", "cluster.strategy"):
        checkpoints.latest(tmp_path, sharded=False)
