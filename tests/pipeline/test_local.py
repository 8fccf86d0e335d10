"""Processes of one machine: a group that trains, a pool that makes shards, and what ends them."""

import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from omniforcing.core import distributed
from omniforcing.core.errors import OmniForcingError
from omniforcing.data.config import ClipsConfig
from omniforcing.data.sources import write_clips
from omniforcing.data.work import Done, in_process
from omniforcing.pipeline.cluster import local
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.launch import launch
from omniforcing.pipeline.cluster.local import LocalPool, process_count
from omniforcing.training.config import TrainerConfig
from tests.support.pool_workers import Slow, die
from tests.support.refusals import refuses

NAMES = [f"train-{n:06d}" for n in range(6)]
slow = pytest.mark.extended


class Together(Slow):
    """Begins when two processes have a task."""

    def __call__(self, name: str, done: Done) -> None:
        (self.work / f"{os.getpid()}.process").touch()
        until = time.monotonic() + 300
        while len([*self.work.glob("*.process")]) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        super().__call__(name, done)


def add_up(work: Path) -> None:
    total = torch.tensor(float(distributed.rank() + 1))
    dist.all_reduce(total)
    (work / f"{distributed.rank()}").write_text(f"{total:.0f} {torch.get_num_threads()}")


def fail(rank: int, dies: bool) -> None:
    if distributed.rank() != rank:
        distributed.barrier()  # which never comes
    if dies:
        die()
    raise OmniForcingError("data.no-clips", "there are none")


@slow
def test_processes_of_a_machine_train_as_one_group(tmp_path: Path) -> None:
    launch(partial(add_up, tmp_path), ClusterConfig(), tmp_path, processes=2)
    assert [(tmp_path / name).read_text() for name in "01"] == ["3 1", "3 1"]


@slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_the_group_and_is_told_once(
    rank: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with refuses("data.no-clips", "there are none"):
        launch(partial(fail, rank, False), ClusterConfig(), tmp_path, processes=2)
    assert "Traceback" not in capfd.readouterr().err


@slow
def test_a_killed_process_ends_the_group(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    told = "the training stopped before its end", "SIGKILL", "memory", "trainer.processes"
    with refuses("pipeline.command-failed", *told):
        launch(partial(fail, 1, True), ClusterConfig(), tmp_path, processes=2)
    assert time.monotonic() - began < 300, "gloo would wait for half an hour"
    assert "Traceback" not in capfd.readouterr().err


@slow
def test_a_pool_makes_every_shard_once_as_one_process_does(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    counts: list[int] = []
    for folder, worker, run in ((here, Slow, in_process), (there, Together, LocalPool(2))):
        folder.mkdir()
        run(partial(worker, folder), NAMES, counts.append)
    assert counts == [3] * 12
    starts = [line.split() for line in (there / "starts.txt").read_text().splitlines()]
    assert sorted(name for name, _ in starts) == NAMES
    assert len({process for _, process in starts} - {str(os.getpid())}) == 2
    for name in NAMES:
        assert (there / f"{name}.tar").read_bytes() == (here / f"{name}.tar").read_bytes()


@slow
def test_an_error_of_the_one_who_counts_is_told(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        LocalPool(2)(partial(Slow, tmp_path), NAMES, fail)


def stumble(crash: bool) -> None:
    if distributed.rank() == 0 and crash:
        raise ValueError("a bug of rank 0")
    distributed.barrier()


@slow
def test_of_a_bug_in_one_process_one_traceback_is_seen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with refuses("pipeline.command-failed", "see above"):
        launch(partial(stumble, True), ClusterConfig(), tmp_path, processes=2)
    errors = capfd.readouterr().err
    assert errors.count("Traceback") == 1 and "a bug of rank 0" in errors


@slow
def test_a_pools_error_is_the_workers_and_finished_shards_stay(tmp_path: Path) -> None:
    with refuses("data.damaged-shard", "a shard is broken"):
        LocalPool(2)(partial(Slow, tmp_path, says="a shard is broken"), NAMES, print)
    with refuses("pipeline.command-failed", "not all shards were made"):
        LocalPool(2)(partial(Slow, tmp_path, NAMES[3]), NAMES, print)
    made = len([*tmp_path.glob("*.tar")])
    assert 0 < made < len(NAMES)
    LocalPool(2)(partial(Slow, tmp_path), NAMES, print)
    assert len([*tmp_path.glob("*.tar")]) == len(NAMES)


@slow
def test_synthetic_clips_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    clips = ClipsConfig(count=67, heldout=9, heldout_duets=3, seconds=1, height=32, width=32)
    for name, run in (("here", in_process), ("there", LocalPool(2))):
        (tmp_path / name).mkdir()
        write_clips(clips, 0, tmp_path / name, run)
    here, there = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("here", "there")
    )
    assert len(here) == 70 + 2 and here == there


def test_one_task_needs_no_process(tmp_path: Path) -> None:
    LocalPool(2)(partial(Slow, tmp_path), NAMES[:1], print)
    assert (tmp_path / "starts.txt").read_text().split()[1] == str(os.getpid())


def test_there_are_no_more_processes_than_cores_and_one_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "os", SimpleNamespace(sched_getaffinity=lambda _: {0, 1, 2}))
    monkeypatch.setattr(local, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [process_count(TrainerConfig(processes=n)) for n in (1, 2, 8)] == [1, 2, 3]
    three = TrainerConfig(processes=8)
    assert [process_count(three, batch) for batch in (9, 8, 7)] == [3, 2, 1]
    assert process_count(TrainerConfig(processes=8, accumulate=2), 6) == 3
    assert process_count(TrainerConfig(processes=8, accumulate=2), 8) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert process_count(TrainerConfig(processes=8)) == 1
