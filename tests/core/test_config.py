"""The configuration: every knob documented, every preset loads, mistakes are named."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from yaml import safe_load

from omniforcing.core.config import (
    Config,
    ConfigError,
    Source,
    TrainerConfig,
    digest,
    load_config,
    project_root,
    to_dict,
)

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "preset").glob("*.yaml"))
SECTIONS = {f.name for f in dataclasses.fields(Config)} - {"preset", "cluster", "seed"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A project whose configuration may be spoilt."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    return tmp_path


def paths(values: Any, prefix: str = "") -> set[str]:
    if not isinstance(values, dict):
        return {prefix}
    return {
        path
        for key, value in values.items()
        for path in paths(value, f"{prefix}.{key}".lstrip("."))
    }


def test_config_yaml_sets_every_key_of_the_schema_to_its_default() -> None:
    written = safe_load((ROOT / "conf" / "config.yaml").read_text())
    assert isinstance(written.pop("cluster"), str)
    schema = to_dict(Config())
    schema.pop("cluster")
    assert paths(written) == paths(schema)
    assert written == schema


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_every_section_and_loads(name: str) -> None:
    written = safe_load((ROOT / "conf" / "preset" / f"{name}.yaml").read_text())
    assert set(written) == SECTIONS
    config = load_config(root=ROOT, preset=name)
    assert config.preset == name
    assert config.table.count_for(config.latent_counts) == config.horizon + 1


def test_the_three_presets_are_there_and_pocket_keeps_its_foundation() -> None:
    assert {"smoke", "pocket", "ltx2"} <= set(PRESETS)
    sources = {
        name: load_config(root=ROOT, preset=name).teacher.source
        for name in ("smoke", "pocket", "ltx2")
    }
    assert sources == {"smoke": Source.train, "pocket": Source.kept, "ltx2": Source.load}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf" / "cluster").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_cluster_loads(copy: Path, path: Path) -> None:
    config = copy / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("cluster: local", f"cluster: {path.stem}"))
    written = safe_load(path.read_text())
    found = to_dict(load_config(root=copy).cluster)
    assert {key: found[key] for key in written} == written


def test_overrides_win_over_the_preset_and_the_preset_over_config_yaml(copy: Path) -> None:
    (copy / "conf" / "preset" / "mine.yaml").write_text("clips: {count: 5, heldout: 2}\n")
    config = load_config(["clips.count=9", "teacher.sampler.guidance.audio=4.5"], copy, "mine")
    assert (config.clips.count, config.clips.heldout) == (9, 2)
    assert config.clips.seconds == Config().clips.seconds
    assert config.teacher.sampler.guidance.audio == 4.5
    assert load_config(["preset=mine"], copy).clips.count == 5


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "teacher.optim.learning_rate=1",
            r"unknown key 'teacher.optim.learning_rate' in the command line; did you mean",
        ),
        ("clipz.count=1", "did you mean 'clips"),
        ("clips.count=many", "clips.count: Value 'many'"),
        ("clips.count=0", "at least one clip is needed"),
        ("clips.seconds=-4", "a clip lasts at least 1 second"),
        ("clips.width=100", "both sides must be positive multiples of 32"),
        ("clips.source=folder", "needs clips.folder"),
        ("student.layout=papers", "known layouts: prefix, merged, thirds"),
        ("student.sigmas=[0.9,0.5]", "they start at 1.0 and fall"),
        ("student.sigmas=[1.0,0.5,0.5]", "they start at 1.0 and fall"),
        ("student.window=0", "window"),
        ("student.stabiliser=tanh", "stabiliser"),
        ("teacher.source=lod", "source"),
        ("codec.source=load", "needs codec.path"),
        ("preset=huge", "unknown preset 'huge': .*known: .*pocket"),
        ("--clips.count=3", "is not of the form key.subkey=value"),
        ("clips.count", "is not of the form key.subkey=value"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config([override], ROOT, preset=None if override.startswith("preset") else "smoke")
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_file_names_the_file(copy: Path) -> None:
    preset = copy / "conf" / "preset" / "smoke.yaml"
    preset.write_text("clips: {cuont: 3}\n")
    with pytest.raises(
        ConfigError,
        match=r"unknown key 'clips.cuont' in conf/preset/smoke.yaml; did you mean 'clips.count'",
    ):
        load_config(root=copy, preset="smoke")
    preset.write_text("clips: {count: [\n")
    with pytest.raises(ConfigError, match=r"smoke.yaml is not readable YAML"):
        load_config(root=copy, preset="smoke")


@pytest.mark.parametrize(
    ("accelerator", "there", "device"),
    [("auto", True, "cuda"), ("gpu", True, "cuda"), ("cpu", True, "cpu"), ("auto", False, "cpu")],
)
def test_a_gpu_is_used_when_there_is_one_and_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, there: bool, device: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert TrainerConfig(accelerator=accelerator).device == device


def test_a_gpu_that_is_asked_for_and_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"trainer.accelerator is gpu, but torch finds no CUDA device"
    ):
        _ = TrainerConfig(accelerator="gpu").device


def test_digest_depends_on_values_alone() -> None:
    assert digest(Config().teacher) == digest(Config().teacher) == digest(to_dict(Config().teacher))
    assert digest(Config().teacher) != digest(
        dataclasses.replace(Config().teacher, text_dropout=0.3)
    )


def test_the_project_is_found_from_below_and_named_when_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT / "src")
    assert project_root() == ROOT


def test_no_interpolation_stands_in_files_that_dvc_tracks() -> None:
    for path in (ROOT / "conf").rglob("*.yaml"):
        lines = [line.split("#")[0] for line in path.read_text().splitlines()]
        assert not any("${" in line for line in lines), path
