"""Digests of code: what counts, what does not, and that no Python version matters."""

from pathlib import Path

import pytest

from omniforcing.pipeline.code import FRAME, SOURCES, CodeBase
from tests.support.refusals import refuses

ROOT = Path(__file__).parents[2]
SCRIPT = "pipelines/train.py"
FILES = {
    SCRIPT: "from omniforcing.model.net import forward\nforward(1)\n",
    f"{SOURCES}/model/net.py": """\
\"\"\"A network.\"\"\"

from omniforcing.core.files import remove
from omniforcing.model.config import Sizes
from omniforcing.table import ROWS


def forward(x):
    \"\"\"Add.\"\"\"
    from omniforcing.model import late

    return x + ROWS + late.bias(x)
""",
    f"{SOURCES}/model/config.py": "class Sizes:\n    layers: int = 4\n",
    f"{SOURCES}/model/late.py": "def bias(x):\n    return 2 * x\n",
    f"{SOURCES}/table.py": "ROWS = 3\nROWS_TWICE = 6\nclass Row:\n    width: int = 1\n",
    f"{SOURCES}/other.py": "ROWS = 4\n",
    f"{SOURCES}/files.py": "def remove():\n    pass\n",
    "page.html": "<p>",
}
# Syntax that Pythons parse into different trees, or print differently.
MIXED = '''
@decorated(1, *a, **{"b": 2, **c})
def f(x, /, y: int = 1, *z, w=None, v, **u) -> "str":
    """Prose."""
    match x:
        case [1, *rest] if (n := len(rest)) > 1e-7:
            return f"{{{x!r:>{y}.{n}}}} and {y=}" u"u \u2028 \U0001fae8", b"\\xff"
        case {"k": -1.5, **more} | C(k=2j):
            async def g(): return [i async for i in more if not None]
    try:
        lambda *, k=...: (yield)
    except* (OSError, ValueError) as e:
        raise X from e
    class D(E, metaclass=F): "prose"
    global q; q: int = 0xFF
'''
MIXED_DIGEST = "2b967ae335e0cf2f4db58015fe8704292ea2d9db15759091e245ec7c6679af2f"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digest(root: Path, *without: str) -> str:
    return CodeBase(root).digest(SCRIPT, ["page.html"], without)


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))


def test_the_closure_has_imports_in_functions_and_not_the_frame(root: Path) -> None:
    names = [path.name for path in CodeBase(root).closure(SCRIPT)]
    assert sorted(names) == ["late.py", "net.py", "table.py", "train.py"]
    names = [path.name for path in CodeBase(root).closure(SCRIPT, (f"{SOURCES}/model",))]
    assert names == ["train.py"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (f"{SOURCES}/model/net.py", "A network.", "The network."),
        (f"{SOURCES}/model/net.py", "    return", "    # Why.\n\n    return"),
        (f"{SOURCES}/model/net.py", "x + ROWS", "(x +\n        ROWS)"),
        (f"{SOURCES}/table.py", "ROWS = 3", 'ROWS = 3\n"""Rows."""'),
        (f"{SOURCES}/files.py", "pass", "return 1"),
        (f"{SOURCES}/other.py", "4", "5"),
        (f"{SOURCES}/table.py", "width: int = 1\n", 'width: int = 1\n    """Pixels."""\n'),
        (f"{SOURCES}/model/config.py", "layers: int = 4", "layers: int = 5"),
    ],
)
def test_prose_formatting_the_frame_and_unused_modules_do_not_count(
    root: Path, name: str, old: str, new: str
) -> None:
    before = digest(root)
    edit(root, name, old, new)
    assert digest(root) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (SCRIPT, "forward(1)", "forward(2)"),
        (f"{SOURCES}/table.py", "ROWS = 3", "ROWS = 3.0"),
        (f"{SOURCES}/model/late.py", "2 * x", "x * 2"),
        (f"{SOURCES}/model/net.py", "import ROWS", "import ROWS_TWICE as ROWS"),
        (f"{SOURCES}/model/net.py", "omniforcing.table", "omniforcing.other"),
        ("page.html", "<p>", "<b>"),
    ],
)
def test_a_line_of_code_counts(root: Path, name: str, old: str, new: str) -> None:
    before = digest(root)
    edit(root, name, old, new)
    assert digest(root) != before


def test_a_module_that_moves_with_its_imports_changes_no_digest(root: Path) -> None:
    before = digest(root)
    (root / SOURCES / "core").mkdir()
    (root / SOURCES / "core" / "__init__.py").write_text('"""Lowest room."""\n')
    (root / SOURCES / "table.py").rename(root / SOURCES / "core" / "layout.py")
    edit(root, f"{SOURCES}/model/net.py", "omniforcing.table", "omniforcing.core.layout")
    assert digest(root) == before


def test_code_that_is_left_out_does_not_count(root: Path) -> None:
    before = digest(root, f"{SOURCES}/table")
    edit(root, f"{SOURCES}/table.py", "3", "4")
    assert digest(root, f"{SOURCES}/table") == before


def test_every_supported_python_gives_the_same_digest(root: Path) -> None:
    (root / SCRIPT).write_text(MIXED)
    assert digest(root) == MIXED_DIGEST


def test_a_file_that_is_not_python_is_one_sentence(root: Path) -> None:
    (root / SCRIPT).write_text("x = 1\ny = = 2\n")
    with refuses("file.unreadable", "pipelines/train.py:2"):
        digest(root)


def test_every_module_of_the_frame_exists() -> None:
    assert [name for name in sorted(FRAME) if not (ROOT / SOURCES / f"{name}.py").is_file()] == []
