"""``dvc.yaml`` against the code: each stage declares exactly the modules it uses, and keys that exist."""

import ast
from pathlib import Path

import pytest
from yaml import safe_load

from omniforcing.ops.declaration import OPTIONAL, check_preset, optional_stages, read_declaration, stage_names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "omniforcing"
STAGES = (
    *("clips", "shards", "codec", "latents", "teacher", "bidirectional_dmd"),
    *("trajectories", "causal_ode", "self_forcing", "evaluate", "export"),
)
OPTIONAL_STAGES = ("causal_decoder",)
# What no result depends on: the frame of a stage, checks, and what is only logged.
FRAME = {"__init__", "cli", "config", "console", "errors", "files"} | {
    f"ops/{name}"
    for name in (
        *("checkpoints", "declaration", "foundation", "launch", "parallel", "pipeline", "presets", "probe", "samples"),
        *("cluster", "jobs", "pool", "stage", "tracking"),
    )
}


def imported(path: Path) -> set[Path]:
    """Modules of ours that a file imports, at its top or within a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {ROOT / "src" / f"{name.replace('.', '/')}.py" for name in names if name.startswith("omniforcing.")}
    return {file for file in files if file.is_file()}


def used(path: Path) -> set[str]:
    """Everything a file needs of ours, the frame left out."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        for file in imported(waiting.pop()) - seen:
            if file.relative_to(PACKAGE).with_suffix("").as_posix() not in FRAME:
                seen.add(file)
                waiting.append(file)
    return {str(file.relative_to(ROOT)) for file in seen}


def test_the_eleven_stages_stand_in_order() -> None:
    assert tuple(stage_names(ROOT)) == STAGES
    assert tuple(optional_stages(ROOT)) == OPTIONAL_STAGES


@pytest.mark.parametrize("stage", STAGES + OPTIONAL_STAGES)
def test_a_stage_declares_exactly_the_modules_it_uses(stage: str) -> None:
    script = f"pipelines/{stage}.py"
    declared = {path for path in read_declaration(stage, ROOT, "pocket").code if path != "src/omniforcing/assets/pocket"}
    # A template is read, not imported.
    declared = {path for path in declared if not path.endswith(".html")}
    assert script in declared
    needed = used(ROOT / script) | {script}
    folders = {path for path in declared if (ROOT / path).is_dir()}
    covered = {path for path in needed if any(path.startswith(f"{folder}/") for folder in folders)}
    assert sorted(needed - declared - covered) == [], "add these to the deps of dvc.yaml"
    assert sorted(declared - needed - folders) == [], "these are not used: take them off the deps of dvc.yaml"
    assert all(any(path.startswith(f"{folder}/") for path in needed) for folder in folders)


@pytest.mark.parametrize("stage", ["clips", "shards", "codec", "latents", "teacher", "bidirectional_dmd", "self_forcing"])
def test_editing_the_streaming_code_retrains_nothing(stage: str) -> None:
    assert not [path for path in read_declaration(stage, ROOT, "pocket").code if path.startswith("src/omniforcing/stream")]


def test_inputs_come_from_stages_before() -> None:
    made: set[str] = set()
    for stage in STAGES + OPTIONAL_STAGES:
        declared = read_declaration(stage, ROOT, "pocket")
        assert set(declared.inputs) <= made
        made.add(declared.folder)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "conf" / "preset").glob("*.yaml")))
def test_every_tracked_key_stands_in_config_and_preset(preset: str) -> None:
    check_preset(ROOT, preset)
    config = safe_load((ROOT / "conf" / "config.yaml").read_text())
    for stage in STAGES + OPTIONAL_STAGES:
        for key in read_declaration(stage, ROOT, preset).keys:
            value = config
            for part in key.split("."):
                value = value[part]


def test_every_stage_tracks_its_own_section_and_the_preset() -> None:
    stages = {k: v for file in ("dvc.yaml", OPTIONAL) for k, v in safe_load((ROOT / file).read_text())["stages"].items()}
    for name, stage in stages.items():
        assert name in read_declaration(name, ROOT, "pocket").keys
        assert stage["cmd"] == f"exec python pipelines/{name}.py preset=${{preset}}"
        assert stage["metrics"] == [f"data/${{preset}}/{name}.metrics.json"]


def test_mlproject_has_an_entry_point_for_main_and_every_stage() -> None:
    entries = safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert set(entries) == {"main", *STAGES, *OPTIONAL_STAGES}
    commands = {stage: f"python pipelines/{stage}.py {{overrides}}" for stage in STAGES + OPTIONAL_STAGES}
    assert all(entries[stage]["command"] == command for stage, command in commands.items())
