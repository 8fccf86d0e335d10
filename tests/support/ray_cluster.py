"""A Ray cluster of this test's own on this machine, with the tests' code and token."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import local_cluster as local
from benchmarks.local_cluster import Cluster, own_cluster

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
def local_cluster() -> Iterator[Cluster]:
    """A head with two CPUs and its dashboard; it, and nothing else, ends at the end, or when we are killed."""
    with own_cluster(TOKEN, **CHANGED) as cluster:
        cluster.head(2)
        yield cluster


@contextmanager
def cluster_of_ours() -> Iterator[Cluster]:
    """A local cluster that this process may drive: it has the cluster's environment meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        with local_cluster() as started:
            yield started
