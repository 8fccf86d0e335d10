"""The tiny artifact, its parts and an engine of it: made once in a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from omniforcing.codec.codec import Codec
from omniforcing.streaming.artifact import Artifact, write_artifact
from omniforcing.streaming.engine import Engine
from tests.support.tiny_artifact import METRICS, make_settings, write_parts, write_student


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a student and of a codec, as their stages write them."""
    student, codec_folder = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("codec")
    write_parts(student, codec_folder)
    return student, codec_folder


@pytest.fixture(scope="session")
def artifact(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_artifact(tmp_path_factory.mktemp("artifact"), *parts, make_settings(), METRICS)


@pytest.fixture(scope="session")
def other_artifact(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact with another student."""
    _, codec = parts
    student = tmp_path_factory.mktemp("student")
    write_student(student, Codec.load(codec), seed=1)
    folder = tmp_path_factory.mktemp("artifact")
    return write_artifact(folder, student, codec, make_settings(), METRICS)


@pytest.fixture(scope="session")
def engine(artifact: Artifact) -> Engine:
    return Engine(artifact)


@pytest.fixture
def own_artifact(artifact: Artifact, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may spoil."""
    return Path(shutil.copytree(artifact.folder, tmp_path / "artifact"))
