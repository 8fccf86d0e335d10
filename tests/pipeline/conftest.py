"""A toy project on disk: real config, generated dvc.yaml, two tiny stages."""

import shutil
from pathlib import Path

import pytest

from omniforcing.core.environment import COMMIT_VARIABLE, PARENT_VARIABLE
from tests.support.checkout import make_repository
from tests.support.toy_project import write_project


@pytest.fixture
def project(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of two stages, the current folder of the test; MLflow goes into it."""
    write_project(tmp_path)
    shutil.copy(database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    ours = (PARENT_VARIABLE, COMMIT_VARIABLE)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DVC_STAGE", *ours):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """The toy project as a git and DVC repository in which nothing has run."""
    folder = tmp_path_factory.mktemp("template")
    write_project(folder)
    shutil.copy(database, folder / "mlflow.db")
    return make_repository(folder)


@pytest.fixture
def repository(project: Path, template: Path) -> Path:
    """The toy project as a git and DVC repository."""
    return shutil.copytree(template, project, dirs_exist_ok=True)
