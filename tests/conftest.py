"""Fixtures of all rooms.

One torch thread: tiny models are many times slower with two on a busy machine.
"""

import contextlib
import gc
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from omniforcing.pipeline.forking import fork_server

# Stages that tests start share one process with the libraries loaded. It is there before modules
# that copy the environment are imported.
_forks = contextlib.ExitStack()
_forks.enter_context(fork_server(threads=1))

# Some libraries add to the environment when they are imported, which a stage's client does not.
import tests.support.checkout  # noqa: E402, F401
from tests.support.ray_cluster import driven_cluster, ray_cluster  # noqa: E402, F401
from tests.support.videos import make_video  # noqa: E402, F401

# A busy machine is no fault of an example.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without experiments of ours; its tables take seconds to create."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def pytest_unconfigure() -> None:
    """End the process that stages are forked from."""
    _forks.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread also behind a test that ran a stage of two here, for fixtures too: the sums of two
    are other sums, and a stream that is compared with one of another process has other bytes.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``--dist loadgroup``: a file's tests share a process and its fixtures, and all Ray tests
    one with their cluster. What takes longest comes first, so that no core is idle at the end.
    """
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        if item.get_closest_marker("documents"):
            group = item.nodeid
        item.add_marker(pytest.mark.xdist_group(group))
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def order(item: pytest.Item) -> int:
        if item.get_closest_marker("documents"):
            return 0
        return 1 if item.get_closest_marker("ray") else 2 + (item.path not in slow)

    items.sort(key=order)


def pytest_collection_finish() -> None:
    """Free the garbage collector from going through all imported modules, in every test that
    collects.
    """
    gc.collect()
    gc.freeze()
