"""Fixtures of all rooms.

One torch thread: tiny models are many times slower with two on a busy machine.
"""

import contextlib
import gc
import os
import re
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


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file all of whose tests are left out: its imports take longer than other tests."""
    left_out = re.findall(r"\bnot (\w+)", config.getoption("markexpr"))
    if collection_path.suffix != ".py" or " or " in config.getoption("markexpr"):
        return None
    of_all = re.findall(r"^pytestmark = pytest\.mark\.(\w+)$", collection_path.read_text(), re.M)
    return True if set(of_all) & set(left_out) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """For ``--dist loadgroup --no-loadscope-reorder``: a file's tests share a process and its
    fixtures, and all Ray tests one with their cluster. What takes longest comes first, so that no
    core is idle at the end.
    """
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.path.relative_to(config.rootpath)
        if item.get_closest_marker("documents") and "[smoke]" not in item.name:
            group = "documents"
        item.add_marker(pytest.mark.xdist_group(str(group)))
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def order(item: pytest.Item) -> int:
        if item.get_closest_marker("documents"):
            return 0
        return 1 if item.get_closest_marker("ray") else 2 + (item.path not in slow)

    items.sort(key=order)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Free the garbage collector from going through all imported modules, in every test that
    collects.

    Raises:
        UsageError: if each test is a group of its own, as with pytest-xdist 3.8.0 and pytest 9.2.0,
            which drops the names of the groups without a word. Each process would make every file's
            fixtures and a cluster.
    """
    grouped = getattr(session.config.option, "loadgroup", False)
    if grouped and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError(
            "pytest-xdist does not group the tests; install the pytest of constraints.txt"
        )
    gc.collect()
    gc.freeze()
