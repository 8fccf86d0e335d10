"""A Ray cluster of the tests' own on this machine, with their code and token.

One serves all tests of a session.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import local_cluster as local
from benchmarks.local_cluster import LocalCluster, own_cluster

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-alone-0123456789abcdef"
CHANGED = {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    "CUDA_VISIBLE_DEVICES": "",
}


def environment() -> dict[str, str]:
    """What head, workers and drivers of a test's cluster need."""
    return local.environment(TOKEN) | CHANGED


@contextmanager
def local_cluster() -> Iterator[LocalCluster]:
    """A head with two CPUs and its dashboard.

    It, and nothing else, ends at the end, or when we are killed.
    """
    with own_cluster(TOKEN, **CHANGED) as cluster:
        cluster.head(2)
        yield cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[LocalCluster]:
    """The session's cluster, for tests whose subprocesses use it."""
    with local_cluster() as started:
        yield started


@pytest.fixture
def driven_cluster(ray_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    """The session's cluster, for a test that drives it from this process, which has its environment
    meanwhile.
    """
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    return ray_cluster
