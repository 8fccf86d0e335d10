"""The kept student: published with its record, opened only when whole, over the kept codec."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omniforcing.core.config import Section
from omniforcing.core.files import MANIFEST, read_json, sha256_file, write_json, write_manifest
from omniforcing.pipeline.config import load_config
from omniforcing.pocket import foundation, student
from omniforcing.streaming.artifact import Artifact
from tests.support.refusals import refuses
from tests.support.tiny_artifact import make_settings

CODEC = {"video_vae/model.safetensors": 1.0, "text/encoder/model.safetensors": 2.0}


def write_weights(folder: Path, files: dict[str, float]) -> None:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.full((3,), value)}, folder / name)


def sections() -> dict[str, Section]:
    config = load_config(preset="pocket")
    return {"student": config.student, "self_forcing": config.self_forcing}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Outputs of a preset whose artifact has the codec that the package keeps."""
    monkeypatch.setattr(foundation, "KEPT", tmp_path / "assets")
    write_weights(tmp_path / "assets" / "codec", CODEC)
    artifact = tmp_path / "data" / "artifact"
    for name, value in CODEC.items():
        place = name if name.startswith("text/") else f"codec/{name}"
        write_weights(artifact, {place: value})
    write_weights(artifact, {"transformer/model.safetensors": 3.0, "sinks.safetensors": 4.0})
    write_json(artifact / "streaming.json", {"schema": 1, **asdict(make_settings())})
    write_manifest(artifact)
    for stage in ("evaluate", "export"):
        write_json(tmp_path / "data" / f"{stage}.metrics.json", {"sync": 0.5})
    return tmp_path / "data"


@pytest.fixture
def kept(data: Path) -> Path:
    """The package's folder of kept files, with that artifact in it."""
    student.publish(data, sections(), 7, "c0ffee")
    return foundation.KEPT


def test_what_is_kept_is_the_artifact_without_the_codec_that_is_kept_already(
    data: Path, kept: Path
) -> None:
    files = {p.relative_to(kept / "student").as_posix() for p in (kept / "student").rglob("*.*")}
    assert files == {
        "transformer/model.safetensors",
        "sinks.safetensors",
        "streaming.json",
        MANIFEST,
    }
    opened = Artifact.kept()
    assert opened.settings == make_settings()
    assert (opened.codec, opened.text) == (kept / "codec", kept / "codec" / "text")
    digest = sha256_file(data / "artifact" / MANIFEST)
    assert sha256_file(opened.folder / MANIFEST) == digest == student.check_student()["artifact"]


def test_the_record_tells_where_it_came_from(data: Path, kept: Path) -> None:
    record = read_json(kept / "student.json")
    assert (record["seed"], record["git_commit"]) == (7, "c0ffee")
    assert record["metrics"]["evaluate"] == {"sync": 0.5}
    assert record["config"]["student"]["window"] == load_config(preset="pocket").student.window
    for name, digest in record["files"].items():
        assert sha256_file(data / "artifact" / name) == digest
    assert {"text/encoder/model.safetensors", "sinks.safetensors"} <= record["files"].keys()


@pytest.mark.parametrize(
    "name",
    [
        "student/sinks.safetensors",
        "student/streaming.json",
        "codec/video_vae/model.safetensors",
        "codec/text/encoder/model.safetensors",
    ],
)
def test_a_damaged_or_missing_file_is_named_with_the_way_out(kept: Path, name: str) -> None:
    path = kept / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with refuses("pocket.damaged-student", path, "install omniforcing again", "--artifact"):
        Artifact.kept()
    path.unlink()
    with refuses("pocket.damaged-student", path, "install omniforcing again"):
        Artifact.kept()


def test_a_manifest_made_to_fit_is_not_the_one_that_was_published(kept: Path) -> None:
    write_weights(kept / "student", {"sinks.safetensors": 9.0})
    write_manifest(kept / "student")
    with refuses("pocket.damaged-student", kept / "student.json", "install omniforcing again"):
        student.check_student()


def test_a_record_that_is_damaged_or_missing_is_named(kept: Path) -> None:
    (kept / "student.json").write_text("{")
    with refuses("pocket.damaged-student", kept / "student.json", "install omniforcing again"):
        Artifact.kept(verify=False)
    (kept / "student.json").write_text("[]")
    with refuses("pocket.damaged-student", kept / "student.json"):
        Artifact.kept()
    (kept / "student.json").unlink()
    with refuses("pocket.damaged-student", kept / "student.json"):
        Artifact.kept()


def test_nothing_kept_says_what_to_do(data: Path) -> None:
    with refuses("file.missing", data.parent / "assets" / "student", "--artifact", "--keep"):
        Artifact.kept()


def test_an_artifact_with_another_codec_is_not_kept(data: Path) -> None:
    write_weights(foundation.KEPT / "codec", {"text/encoder/model.safetensors": 5.0})
    with refuses("pocket.other-codec", "text/encoder/model.safetensors", "codec.source=kept"):
        student.publish(data, sections(), 0, "unknown")
    assert not (foundation.KEPT / "student").exists()


def test_more_than_the_package_may_hold_is_not_kept(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student, "MOST_BYTES", 1000)
    with refuses("pocket.too-large", "1,000", "export.precision=bf16"):
        student.publish(data, sections(), 0, "unknown")
    assert not (foundation.KEPT / "student").exists()


def test_a_student_is_replaced_as_a_whole(data: Path, kept: Path) -> None:
    old = student.check_student()["artifact"]
    shutil.rmtree(data / "artifact" / "transformer")
    write_weights(data / "artifact", {"sinks.safetensors": 6.0})
    write_manifest(data / "artifact")
    student.publish(data, sections(), 8, "facade")
    assert not (kept / "student" / "transformer").exists()
    assert student.check_student()["artifact"] != old


def test_the_shipped_student_is_whole_and_all_kept_files_are_small() -> None:
    record = student.check_student()
    assert Artifact.kept().settings.preset == "pocket"
    assert record["metrics"]["evaluate"]
    files = [path for path in foundation.KEPT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= student.MOST_BYTES
