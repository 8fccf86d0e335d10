"""Imports run downwards, and an inference machine needs no training tools."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "omniforcing"
TRAINING_ONLY = {"ray", "mlflow", "dvc", "lightning", "pytorch_lightning", "webdataset", "torchaudio", "decord"}
HEAVY = TRAINING_ONLY | {"torch", "diffusers", "transformers", "scipy", "matplotlib", "pandas"}
# Each layer may use those before it.
LAYERS = [
    {"__init__", "errors", "files", "layout"},
    {"world", "latents", "seeding", "states", "config", "console"},
    {"schedule"},
    {"codec", "text", "model"},
    {"data", "distill", "stream", "metrics"},
    {"ops"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Doors that nothing else imports: MLflow and Ray Serve load them.
DOORS = {"stream/pyfunc.py", "stream/ray_serve.py"}
# What only trains: streaming does not load it, so that editing it changes no artifact.
TRAINS = {"codec/training.py", "codec/causal.py"}


def layer(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found.add(str(node.module))
            if node.module == "omniforcing":
                found |= {f"omniforcing.{alias.name}" for alias in node.names}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_its_own_layer_or_below(path: Path) -> None:
    own = LEVEL[layer(path)]
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("omniforcing.")} - {"__version__"}
    above = sorted(name for name in ours if LEVEL[name] > own)
    if layer(path) != "cli":
        assert not above
    if layer(path) in LAYERS[3] | {"stream", "distill"} and path.relative_to(PACKAGE).as_posix() not in DOORS:
        # Mel spectrograms are for encoding; the module says so and imports torchaudio within its function.
        allowed = {"torchaudio"} if path.name == "mel.py" else set()
        assert not ({name.split(".")[0] for name in imports(path)} & TRAINING_ONLY) - allowed


def test_nothing_but_the_training_side_uses_a_door() -> None:
    doors = DOORS | TRAINS
    modules = {f"omniforcing.{door[:-3].replace('/', '.')}" for door in doors}
    inside = {path for path in MODULES if layer(path) in LAYERS[3] | {"stream", "cli"}} - {PACKAGE / door for door in doors}
    assert not {path for path in inside if imports(path) & modules}


def test_only_launch_imports_ray() -> None:
    users = {path.relative_to(PACKAGE).as_posix() for path in MODULES if {n.split(".")[0] for n in imports(path)} & {"ray"}}
    assert users <= {"ops/launch.py", "ops/cluster.py", "ops/pool.py", "ops/jobs.py", "stream/ray_serve.py"}


def loaded_after(code: str, names: set[str]) -> set[str]:
    script = f"{code}\nimport sys; print(*(n for n in {sorted(names)!r} if n in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(answer.stdout.split("\n")[-2].split())


INFERENCE = ["stream.engine", "stream.serve", "stream.artifact", "stream.mux", "metrics.speed", "model.rollout"]


@pytest.mark.parametrize("module", INFERENCE)
def test_streaming_needs_no_training_tools(module: str) -> None:
    # Transformers looks for torchaudio of its own accord, so what counts is that nothing is missed.
    barred = f"import sys; sys.modules.update(dict.fromkeys({sorted(TRAINING_ONLY)!r}))"
    subprocess.run([sys.executable, "-c", f"{barred}; import omniforcing.{module}"], check=True)


# A machine that only measures updates has torch, diffusers, transformers, safetensors, numpy.
NOT_FOR_UPDATES = TRAINING_ONLY | {"omegaconf", "av", "scipy", "matplotlib"}


def test_an_engine_that_opens_no_clip_needs_no_pyav() -> None:
    barred = f"import sys; sys.modules.update(dict.fromkeys({sorted(NOT_FOR_UPDATES)!r}))"
    wanted = "omniforcing.stream.engine, benchmarks.student, benchmarks.gpu.pocket"
    subprocess.run([sys.executable, "-c", f"{barred}; import {wanted}"], check=True, cwd=PACKAGE.parents[1])


def test_training_methods_and_the_planner_need_no_training_tools() -> None:
    folders = [PACKAGE / "distill", PACKAGE / "codec"]
    files = [path for path in MODULES if path.parent in folders and path.stem != "__init__"]
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in files]
    assert {"distill.self_forcing", "codec.training"} <= set(names)
    names += ["ops.plan", "ops.trace", "ops.networks"]
    wanted = ", ".join(f"omniforcing.{name}" for name in names)
    barred = f"import sys; sys.modules.update(dict.fromkeys({sorted(NOT_FOR_UPDATES)!r}))"
    subprocess.run([sys.executable, "-c", f"{barred}; import {wanted}"], check=True)


def test_command_line_and_configuration_load_nothing_heavy() -> None:
    code = "import omniforcing.cli, omniforcing.config as c; c.load_config(preset='smoke')"
    assert loaded_after(code, HEAVY) == set()


def test_the_frame_of_a_stage_loads_nothing_heavy() -> None:
    assert loaded_after("import omniforcing.ops.stage, omniforcing.ops.pipeline", HEAVY) == set()
