"""The kept foundation: published with its record, taken only when whole and fitting."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omniforcing.core.config import flatten
from omniforcing.core.files import read_json, verify_manifest, write_json, write_manifest
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pocket import foundation
from omniforcing.pocket.foundation import PARTS, publish, take_kept
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended


@pytest.fixture
def kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose trained parts have been published into a kept foundation of its own."""
    monkeypatch.setattr(foundation, "KEPT", project / "assets")
    data = project / "data" / "pocket"
    for seed, part in enumerate(PARTS):
        (data / part).mkdir(parents=True)
        save_file({"w": torch.full((3,), float(seed))}, data / part / "model.safetensors")
        write_manifest(data / part)
        write_json(data / f"{part}.metrics.json", {"loss": 0.5})
        (data / f"{part}.curves.csv").write_text("step,loss\n1,0.5\n")
    config = load_config(root=project)
    sections = {"codec": config.codec, "teacher": config.teacher}
    publish(data, sections, config.clips, config.seed, "unknown")
    return project / "assets"


@pytest.fixture
def config(project: Path) -> Config:
    return load_config(root=project)


def test_what_is_published_is_taken_again_with_its_record(
    kept: Path, config: Config, tmp_path: Path
) -> None:
    take_kept("codec", config.codec, "pocket", tmp_path / "codec")
    record = take_kept(
        "teacher", config.teacher, "pocket", tmp_path / "teacher", codec=tmp_path / "codec"
    )
    assert record["seed"] == config.seed
    assert record["metrics"] == {"loss": 0.5}
    assert record["config"]["teacher"]["text_dropout"] == 0.1
    assert record["git_commit"] == "unknown"
    assert (kept / "teacher.curves.csv").read_text().startswith("step,loss")
    verify_manifest(tmp_path / "teacher")


@pytest.mark.usefixtures("kept")
def test_training_keys_may_change_and_architecture_may_not(config: Config, tmp_path: Path) -> None:
    longer = replace(
        config, teacher=replace(config.teacher, optim=replace(config.teacher.optim, steps=9))
    )
    take_kept("teacher", longer.teacher, "pocket", tmp_path / "teacher")
    wider = replace(
        config, teacher=replace(config.teacher, model=replace(config.teacher.model, layers=7))
    )
    with refuses("pocket.other-config", "teacher.model.layers was 4, is 7", "make foundation"):
        take_kept("teacher", wider.teacher, "pocket", tmp_path / "wider")
    assert not (tmp_path / "wider").exists()


def test_an_altered_or_missing_file_is_named(kept: Path, config: Config, tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, kept / "codec" / "model.safetensors")
    with refuses("file.altered", "model.safetensors", "manifest.json"):
        take_kept("codec", config.codec, "pocket", tmp_path / "codec")
    # A manifest made to fit does not help: the record names the weights too.
    write_manifest(kept / "codec")
    with refuses("file.altered", "codec.json"):
        take_kept("codec", config.codec, "pocket", tmp_path / "codec")
    (kept / "codec" / "model.safetensors").unlink()
    with refuses("file.missing", kept / "codec" / "model.safetensors"):
        take_kept("codec", config.codec, "pocket", tmp_path / "codec")


@pytest.mark.usefixtures("kept")
def test_a_teacher_is_refused_with_another_codec(config: Config, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    save_file({"w": torch.ones(3)}, tmp_path / "other" / "model.safetensors")
    with refuses("pocket.other-codec", tmp_path / "other", "teacher"):
        take_kept(
            "teacher", config.teacher, "pocket", tmp_path / "teacher", codec=tmp_path / "other"
        )


def test_nothing_kept_says_how_to_train(
    project: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foundation, "KEPT", project / "nothing")
    with refuses("file.missing", "codec", "make foundation", "codec.source=train"):
        take_kept("codec", config.codec, "pocket", project / "codec")


def test_the_shipped_foundation_is_whole_and_fits_pocket() -> None:
    root = Path(__file__).parents[2]
    if not (foundation.KEPT / "codec.json").is_file():
        pytest.skip("no foundation is kept yet: make foundation")
    config = load_config(root=root, preset="pocket")
    for part in PARTS:
        verify_manifest(foundation.KEPT / part)
        record = read_json(foundation.KEPT / f"{part}.json")
        wanted = foundation.architecture(getattr(config, part), part)
        # The record also holds what has become constant.
        kept = flatten(record["architecture"])
        assert {key: kept[key] for key in flatten(wanted)} == flatten(wanted)
        assert record["weights"] == foundation.weights_digest(foundation.KEPT / part)
