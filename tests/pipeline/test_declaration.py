"""Declared stages agree with the code and the generated files: keys exist, nothing is stale."""

import shutil
from pathlib import Path

import pytest
from yaml import safe_load

from omniforcing.pipeline.code import SOURCES, CodeBase
from omniforcing.pipeline.declaration import (
    STAGE_MODULES,
    check_preset,
    known_presets,
    optional_stages,
    read_declaration,
    read_specs,
    stage_names,
)
from omniforcing.pipeline.generate import (
    CODE,
    check_pipelines,
    ensure_pipeline,
    pipelines_of,
    write_pipelines,
)
from tests.support.refusals import refuses

ROOT = Path(__file__).parents[2]
STAGES = (
    *("clips", "shards", "codec", "latents", "teacher", "bidirectional_dmd"),
    *("trajectories", "causal_ode", "self_forcing", "evaluate", "export"),
)
OPTIONAL_STAGES = ("causal_decoder",)


def test_the_eleven_stages_stand_in_order() -> None:
    assert tuple(stage_names(ROOT)) == STAGES
    assert tuple(optional_stages(ROOT)) == OPTIONAL_STAGES


def test_the_generated_pipelines_are_fresh() -> None:
    check_pipelines(ROOT)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Configuration and declaration of the project, with its generated pipeline."""
    for name in ("conf", "pipelines"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("presets", "optional")
        )
    write_pipelines(tmp_path)
    return tmp_path


@pytest.mark.extended
def test_a_stale_pipeline_is_named_with_the_command_that_renews_it(checkout: Path) -> None:
    check_pipelines(checkout)
    assert write_pipelines(checkout, ["smoke"]) == ["pipelines/presets/smoke/dvc.yaml"]
    for path in ("dvc.yaml", "pipelines/presets/smoke/dvc.yaml"):
        (checkout / path).write_text("stages: {}\n")
        with refuses("pipeline.stale-file", path, "omniforcing pipeline --write"):
            check_pipelines(checkout)
        assert write_pipelines(checkout) == [path]
    (checkout / "conf" / "preset" / "smoke.yaml").unlink()
    assert write_pipelines(checkout) == ["pipelines/presets/smoke/dvc.yaml"]
    assert not (checkout / "pipelines" / "presets" / "smoke" / "dvc.yaml").exists()


def test_an_optional_stage_gets_its_own_pipeline_when_it_is_named(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_pipeline(checkout, "pocket", ["codec"])
    assert not (checkout / "pipelines" / "optional").exists()
    ensure_pipeline(checkout, "pocket", ["causal_decoder"])
    assert (
        "written: pipelines/optional/dvc.yaml, the pipeline of preset pocket"
        in capsys.readouterr().out
    )
    check_pipelines(checkout)


def test_a_preset_that_lacks_a_section_or_does_not_exist_is_one_sentence(checkout: Path) -> None:
    mine = checkout / "conf" / "preset" / "mine.yaml"
    mine.write_text("clips: {}\n")
    with refuses("config.missing-value", "mine.yaml", "shards, codec, latents"):
        write_pipelines(checkout, ["mine"])
    with refuses("config.unknown-preset", "'smok'", "'smoke'"):
        write_pipelines(checkout, ["smok"])
    mine.unlink()
    config = checkout / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("preset: pocket", "preset: poket"))
    with refuses("config.unknown-preset", "'poket'", "'pocket'"):
        write_pipelines(checkout)
    assert (checkout / "dvc.yaml").is_file()


def test_every_package_file_that_a_stage_reads_is_declared_and_there() -> None:
    files = [file for spec in read_specs(ROOT) for file in spec.files]
    assert files and all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize(
    "stage", ["clips", "shards", "codec", "latents", "teacher", "bidirectional_dmd", "self_forcing"]
)
def test_editing_the_streaming_code_retrains_nothing(stage: str) -> None:
    used = CodeBase(ROOT).closure(f"{STAGE_MODULES}/{stage}.py")
    assert not [path for path in used if path.is_relative_to(ROOT / SOURCES / "stream")]


def test_inputs_come_from_stages_before() -> None:
    made: set[str] = set()
    for stage in STAGES + OPTIONAL_STAGES:
        declared = read_declaration(stage, ROOT, "pocket")
        assert set(declared.inputs) <= made
        made.add(declared.folder)


@pytest.mark.parametrize("preset", known_presets(ROOT))
def test_every_tracked_key_stands_in_config_and_preset(preset: str) -> None:
    check_preset(ROOT, preset)
    config = safe_load((ROOT / "conf" / "config.yaml").read_text())
    for stage in STAGES + OPTIONAL_STAGES:
        for key in read_declaration(stage, ROOT, preset).keys:
            value = config
            for part in key.split("."):
                value = value[part]


@pytest.mark.parametrize("preset", known_presets(ROOT))
def test_every_stage_tracks_its_own_section_its_preset_and_one_digest_of_code(preset: str) -> None:
    texts = pipelines_of(ROOT, preset)
    stages = {
        name: stage for text in texts.values() for name, stage in safe_load(text)["stages"].items()
    }
    del stages[CODE]
    assert set(stages) == {*STAGES, *OPTIONAL_STAGES}
    for name, stage in stages.items():
        assert name in read_declaration(name, ROOT, preset).keys
        assert stage["cmd"] == f"exec python -m omniforcing stage {name} --preset {preset}"
        assert stage["metrics"] == [f"data/{preset}/{name}.metrics.json"]
        assert [dep for dep in stage["deps"] if "/code/" in dep] == [f"data/{preset}/code/{name}"]
        assert all(dep.startswith(f"data/{preset}/") for dep in stage["deps"])


def test_a_preset_with_a_base_tracks_the_keys_there_and_its_own_sections() -> None:
    stages = safe_load(pipelines_of(ROOT, "ltx23")["pipelines/presets/ltx23/dvc.yaml"])["stages"]
    assert stages["bidirectional_dmd"]["params"] == [
        {"conf/config.yaml": ["seed", "student.sigmas", "bidirectional_dmd"]},
        {"conf/preset/ltx2.yaml": ["student.sigmas", "bidirectional_dmd"]},
        {"conf/preset/ltx23.yaml": ["base", "student", "bidirectional_dmd"]},
    ]


def test_a_preset_with_a_base_names_every_section(checkout: Path) -> None:
    mine = checkout / "conf" / "preset" / "mine.yaml"
    mine.write_text("base: ltx2\nclips: {}\n")
    with refuses("config.missing-value", "mine.yaml", "shards, codec, latents"):
        write_pipelines(checkout, ["mine"])


def test_mlproject_has_an_entry_point_for_main_and_every_stage() -> None:
    entries = safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert set(entries) == {"main", *STAGES, *OPTIONAL_STAGES}
    commands = {
        stage: f"python -m omniforcing stage {stage} --preset {{preset}} {{overrides}}"
        for stage in STAGES + OPTIONAL_STAGES
    }
    assert all(entries[stage]["command"] == command for stage, command in commands.items())
