"""Imports run downwards, and an inference machine needs no training tools."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.structure import circle, imports_upward, read_package

PACKAGE = Path(__file__).parents[1] / "src" / "omniforcing"
TRAINING_ONLY = {
    "ray",
    "mlflow",
    "dvc",
    "lightning",
    "pytorch_lightning",
    "webdataset",
    "torchaudio",
    "decord",
}
HEAVY = TRAINING_ONLY | {"torch", "diffusers", "transformers", "scipy", "matplotlib", "pandas"}
# Rooms that know nothing of the training tools, but for the modules in DOORS.
WITHOUT_TRAINING_TOOLS = {"core", "codec", "model", "distill", "streaming", "serving"}
# Doors that nothing else imports: MLflow and Ray Serve load them.
DOORS = {"serving/pyfunc.py", "serving/ray_serve.py"}
MOST_FILES, MOST_LINES = 12, 400
TESTS = Path(__file__).parent
OURS = ("omniforcing", "benchmarks", "pipelines", "tools", "tests")
PRIVATE_PATH = rf"({'|'.join(OURS)})\.[\w.]*\b_[a-z]\w*"


def room(path: Path) -> str:
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
def test_a_module_imports_no_training_tool_where_none_may_be_needed(path: Path) -> None:
    if room(path) in WITHOUT_TRAINING_TOOLS and path.relative_to(PACKAGE).as_posix() not in DOORS:
        assert not {name.split(".")[0] for name in imports(path)} & TRAINING_ONLY


def test_imports_run_one_way_and_in_no_circle() -> None:
    """Within functions and for types too: what needs its own importer belongs elsewhere."""
    modules = read_package(PACKAGE.parents[1])
    assert imports_upward(modules) == []
    assert circle(modules) == []


def test_rooms_and_files_stay_small() -> None:
    """A new file or line beyond this asks for a room, or a file, of its own."""
    for folder in {path.parent for path in MODULES} - {PACKAGE}:
        files = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(files) <= MOST_FILES, f"{folder} has {len(files)} files; make a folder of some"
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, f"{folder}/__init__.py does not say what the room is for"
    long = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if len(path.read_text().splitlines()) > MOST_LINES
    }
    assert not long, f"over {MOST_LINES} lines, split them: {sorted(long)}"


def test_nothing_but_the_training_side_uses_a_door() -> None:
    doors = {f"omniforcing.{door[:-3].replace('/', '.')}" for door in DOORS}
    inside = {path for path in MODULES if room(path) in WITHOUT_TRAINING_TOOLS | {"cli"}} - {
        PACKAGE / door for door in DOORS
    }
    assert not {path for path in inside if imports(path) & doors}


def test_only_launch_imports_ray() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if {n.split(".")[0] for n in imports(path)} & {"ray"}
    }
    assert {name.rpartition("/")[0] for name in users} <= {"pipeline/cluster", "serving"}
    assert {name for name in users if name.startswith("serving")} <= DOORS


def loaded_after(code: str, names: set[str]) -> set[str]:
    script = f"{code}\nimport sys; print(*(n for n in {sorted(names)!r} if n in sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split("\n")[-2].split())


INFERENCE = [
    "streaming.engine",
    "serving.serve",
    "streaming.artifact",
    "media.mux",
    "evaluation.speed",
    "model.rollout",
]


def import_without(barred: set[str], modules: list[str]) -> None:
    """Import modules one after the other in a new interpreter that has none of the ``barred``
    packages.
    """
    script = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({sorted(barred)!r}))
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{{name}}: {{error}}")
"""
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, cwd=PACKAGE.parents[1], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.extended
def test_streaming_needs_no_training_tools() -> None:
    # Transformers looks for torchaudio of its own accord, so what counts is that nothing is missed.
    import_without(TRAINING_ONLY, [f"omniforcing.{module}" for module in INFERENCE])


# A machine that only measures updates has torch, diffusers, transformers, safetensors, numpy.
NOT_FOR_UPDATES = TRAINING_ONLY | {"omegaconf", "av", "scipy", "matplotlib"}


@pytest.mark.extended
def test_training_methods_the_planner_and_an_engine_that_opens_no_clip_need_little() -> None:
    folders = [PACKAGE / "distill", PACKAGE / "codec", PACKAGE / "training" / "codec"]
    files = [path for path in MODULES if path.parent in folders and path.stem != "__init__"]
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in files]
    names.remove("training.codec.fitting")  # runs the training loop, which is Lightning's
    assert {"distill.self_forcing", "training.codec.training"} <= set(names)
    names += [f"pipeline.planner.{name}" for name in ("plan", "trace", "networks")]
    names.append("streaming.engine")
    benchmarks = ["benchmarks.student.__main__", "benchmarks.gpu.pocket"]
    import_without(NOT_FOR_UPDATES, [f"omniforcing.{name}" for name in names] + benchmarks)


def test_command_line_and_configuration_load_nothing_heavy() -> None:
    code = "import omniforcing.cli, omniforcing.pipeline.config as c; c.load_config(preset='smoke')"
    assert loaded_after(code, HEAVY) == set()


def test_the_frame_of_a_stage_loads_nothing_heavy() -> None:
    assert (
        loaded_after("import omniforcing.pipeline.stage, omniforcing.pipeline.runner", HEAVY)
        == set()
    )


TEST_FILES = sorted(TESTS.rglob("*.py"))


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda p: p.relative_to(TESTS).as_posix())
def test_a_test_imports_helpers_from_support_alone_and_no_private_name(path: Path) -> None:
    tree = ast.parse(path.read_text())
    foreign = {name for name in imports(path) if re.match(r"tests(\.(?!support\b)|$)", name)}
    scripts = set(re.findall(r"from (tests\.(?!support\b)[\w.]+) import", path.read_text()))
    assert not foreign | scripts, "move what two test modules share to tests/support"
    assert not privates(tree), "test what is public, or make public what is worth a test"


def privates(tree: ast.AST) -> set[str]:
    """Private names of our code that a module imports, touches or patches.

    Its own, on self, are its own affair.
    """
    libraries = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if not alias.name.startswith(OURS)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(OURS):
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if root_name(node) not in libraries | {"self", "cls"}:
                found.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and re.fullmatch(PRIVATE_PATH, str(node.value)):
            found.add(str(node.value))
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def root_name(node: ast.expr) -> str:
    """Name at the left end of a chain of attributes, calls and subscripts.

    "" where there is none.
    """
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize(
    ("code", "private"),
    [
        ("engine._text", True),
        ("build().part._text", True),
        ("from omniforcing.core.files import _write", True),
        ("patch('omniforcing.core.files._write')", True),
        ("self._own = 1", False),
        ("import torch; torch._dynamo.reset()", False),
    ],
)
def test_private_names_are_told_from_public_ones(code: str, private: bool) -> None:
    assert bool(privates(ast.parse(code))) is private
