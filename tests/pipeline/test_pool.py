"""Shards made on a Ray cluster: the bytes of one process, none lost or doubled by a kill, and
refusals in a sentence.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from benchmarks.local_cluster import LocalCluster, processes
from omniforcing.data.config import ClipsConfig
from omniforcing.data.shards import plan_shards, write_shards
from omniforcing.data.sources import read_clips, write_clips
from omniforcing.data.tars import read_index
from omniforcing.data.tensors import write_shard
from omniforcing.data.work import in_process
from omniforcing.media.format import ClipFormat
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.connect import Installed, difference, problem_with, room
from omniforcing.pipeline.cluster.pool import Pool
from tests.support.pool_workers import Slow, die
from tests.support.ray_cluster import ROOT, environment
from tests.support.refusals import refused, refuses

ray_test = pytest.mark.ray


def started(
    cluster: LocalCluster,
    work: Path,
    reads: Sequence[Path] = (),
    workers: int = 2,
    restarts: int = 3,
) -> Pool:
    """A pool on the cluster, to be entered."""
    return Pool(
        ClusterConfig(cluster.address, workers=workers, restarts=restarts), list(reads), work, 1
    )


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
    }


@ray_test
def test_shards_of_two_workers_are_those_of_one_process(
    driven_cluster: LocalCluster, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    write_clips(
        ClipsConfig(count=11, heldout=3, heldout_duets=0, seconds=1, height=32, width=32), 0, clips
    )
    plans = plan_shards(read_clips(clips), ClipFormat(32, 32, 1), 4)
    here, there = tmp_path / "here", tmp_path / "there"
    write_shards(plans, here)
    there.mkdir()
    with started(driven_cluster, there, [clips]) as pool:
        write_shards(plans, there, pool)
    assert content(there) == content(here)


NAMES = [f"train-{n:06d}" for n in range(6)]


@ray_test
def test_a_killed_workers_shard_is_made_again_and_no_other(
    driven_cluster: LocalCluster, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    in_process(partial(Slow, here), NAMES, lambda _: None)
    counts: list[int] = []
    with started(driven_cluster, there) as pool:
        pool(partial(Slow, there, "train-000002"), NAMES, counts.append)
    starts = [line.split()[0] for line in (there / "starts.txt").read_text().splitlines()]
    assert sorted(starts) == sorted([*NAMES, "train-000002"])
    assert sum(counts) == 3 * len(NAMES)
    shards = {name: data for name, data in content(there).items() if name.startswith("train")}
    assert shards == {
        name: data for name, data in content(here).items() if name.startswith("train")
    }
    assert sum(read_index(there / f"{name}.tar")["n"] for name in NAMES) == 18
    assert not list(there.glob(".*.tmp-*"))


@ray_test
def test_a_shard_that_always_kills_its_worker_ends_in_a_sentence(
    driven_cluster: LocalCluster, tmp_path: Path
) -> None:
    with (
        refuses("cluster.workers-died", "2 times", "cluster.restarts is 1"),
        started(driven_cluster, tmp_path, workers=1, restarts=1) as pool,
    ):
        pool(die, ["train-000000"], lambda _: None)


@ray_test
def test_what_a_worker_refuses_is_told_in_its_sentence_and_what_ran_before_used_the_same_connection(
    driven_cluster: LocalCluster, tmp_path: Path
) -> None:
    import ray

    connections: list[str] = []
    with refuses("data.damaged-shard", "shard x"), started(driven_cluster, tmp_path) as pool:
        pool(
            partial(Slow, tmp_path),
            NAMES[:1],
            lambda _: connections.append(ray.get_runtime_context().get_job_id()),
        )
        connections.append(ray.get_runtime_context().get_job_id())
        pool(
            partial(Slow, tmp_path, says="shard x is damaged; make it again"), NAMES, lambda _: None
        )
    assert len(connections) == 2 and len(set(connections)) == 1
    assert not ray.is_initialized()


@ray_test
def test_more_workers_than_fit_are_refused_at_once(
    driven_cluster: LocalCluster, tmp_path: Path
) -> None:
    began = time.monotonic()
    with (
        refuses("cluster.too-small", "2 workers of 1 CPU", "cluster.workers is 5"),
        started(driven_cluster, tmp_path, workers=5) as pool,
    ):
        pool(partial(Slow, tmp_path), NAMES, lambda _: None)
    assert time.monotonic() - began < 30


@ray_test
def test_a_node_that_does_not_see_the_data_is_named(
    driven_cluster: LocalCluster, tmp_path: Path
) -> None:
    with (
        refuses("cluster.unusable-node", tmp_path / "shards"),
        started(driven_cluster, tmp_path, [tmp_path / "shards"]) as pool,
    ):
        pool(partial(Slow, tmp_path), NAMES, lambda _: None)


@ray_test
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_a_cluster_of_a_killed_test_run_ends_with_it() -> None:
    script = """
import time
from tests.support.ray_cluster import local_cluster
with local_cluster() as cluster:
    print(cluster.mark, flush=True)
    time.sleep(300)
"""
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    mark = run.stdout.readline().strip()
    assert len(processes(mark)) > 3
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 30
    while alive := processes(mark):
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


@ray_test
def test_another_token_is_refused(driven_cluster: LocalCluster, tmp_path: Path) -> None:
    # Ray reads its token once per process.
    script = f"""
from pathlib import Path
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.core.console import run_command
from omniforcing.pipeline.cluster.pool import Pool
with Pool(ClusterConfig({driven_cluster.address!r}), [], Path({str(tmp_path)!r}), 1) as pool:
    raise SystemExit(run_command(lambda: pool(print, [1], print)))
"""
    code, said = run_python(script, RAY_AUTH_TOKEN="another-token-0123456789abcdef0123456789")
    assert code == 2, said
    refused(said, "cluster.refused-token", driven_cluster.address, "RAY_AUTH_TOKEN")


def run_python(script: str, **changed: str) -> tuple[int, str]:
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=environment() | changed,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return answer.returncode, answer.stdout + answer.stderr


def test_an_address_where_nothing_listens_is_refused(tmp_path: Path) -> None:
    with (
        refuses("cluster.unreachable", "cluster.address=127.0.0.1:1"),
        Pool(ClusterConfig("127.0.0.1:1"), [], tmp_path, 1) as pool,
    ):
        pool(partial(Slow, tmp_path), NAMES, lambda _: None)


def test_without_tasks_nothing_is_started(tmp_path: Path) -> None:
    with Pool(ClusterConfig("127.0.0.1:1"), [], tmp_path, 1) as pool:
        pool(partial(Slow, tmp_path), [], lambda _: None)


def test_other_code_and_other_packages_are_told_apart() -> None:
    here = Installed("/a", "1", {"torch": "2.13"})
    assert difference(here, Installed("/b", "1", {"torch": "2.13"})) is None
    assert "runs another version of omniforcing (/b)" in str(
        difference(here, Installed("/b", "2", {"torch": "2.13"}))
    )
    assert "has torch 2.12 where this process has 2.13; install torch 2.13 there" in str(
        difference(here, Installed("/a", "1", {"torch": "2.12"}))
    )


def test_a_node_without_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem_with([], tmp_path, "n") is None
    assert not list(tmp_path.iterdir())
    usage = type("Usage", (), {"free": 3e6})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert "has 3 MB free at" in str(problem_with([], tmp_path, "n"))


def test_room_counts_whole_workers_per_node() -> None:
    nodes: list[Mapping[str, float]] = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 8.0}]
    assert room(nodes, {"CPU": 2.0}) == 5
    assert room(nodes, {"CPU": 1.0, "GPU": 1.0}) == 1


def test_two_workers_at_once_on_one_shard_leave_one_whole_shard(tmp_path: Path) -> None:
    """One taken for dead that lives on must not spoil what its successor writes."""

    def write() -> None:
        write_shard(tmp_path, NAMES[0], Slow(tmp_path).samples(NAMES[0]))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert read_index(tmp_path / f"{NAMES[0]}.tar")["n"] == 3
