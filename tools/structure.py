"""The structure of the code, as figures: rooms, sizes, imports upward, circles, prose.

``python -m tools.structure [REVISION ...]`` prints a column for the working tree and one for
each revision of git, so that a clean-up shows. It reads files and runs none of them.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError

# Rooms from the bottom up; a room imports its own modules and those of rooms before it. Rooms
# within a room count as that room.
ROOMS = (
    *(
        "core",
        "tracking",
        "networks",
        "media",
        "codec",
        "model",
        "pocket",
        "data",
        "training",
        "distill",
    ),
    *("evaluation", "streaming", "serving", "pipeline", "doctor", "cli", "__main__"),
)
PACKAGE = Path("src", "omniforcing")
SILENT = {
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A file of the package.

    Attributes:
        path: relative to the package.
        text: its source.
    """

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Dotted name within the package."""
        return ".".join(self.path.with_suffix("").parts)

    @property
    def room(self) -> str:
        """The top folder it lies in; its own name at the top."""
        return self.path.parts[0] if len(self.path.parts) > 1 else self.path.stem

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return ast.parse(self.text)

    @cached_property
    def functions(self) -> list[Function]:
        """All functions and methods."""
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def imports(self) -> Iterator[str]:
        """Dotted names within the package that it imports, anywhere.

        ``from a import b`` gives a and a.b.
        """
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            yield from (
                name.removeprefix("omniforcing.")
                for name in names
                if name.startswith("omniforcing.")
            )


def read_package(root: Path) -> list[Module]:
    """The modules of a checkout."""
    package = root / PACKAGE
    files = sorted(package.rglob("*.py"))
    return [Module(path.relative_to(package), path.read_text(encoding="utf-8")) for path in files]


def imports_upward(modules: list[Module]) -> list[str]:
    """``module -> imported`` for every import of a room that stands higher."""
    found = []
    for module in modules:
        for name in module.imports():
            above = name.split(".")[0]
            if {module.room, above} <= set(ROOMS) and ROOMS.index(above) > ROOMS.index(module.room):
                found.append(f"{module.name} -> {name}")
    return sorted(set(found))


def circle(modules: list[Module]) -> list[str]:
    """The modules of one circle of imports, within functions and for types too.

    None if there is none.
    """
    names = {module.name for module in modules}
    graph = {
        module.name: {n for n in module.imports() if n in names and n != module.name}
        for module in modules
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def figures(modules: list[Module]) -> dict[str, str]:
    """What the table shows of one tree."""
    code = [module for module in modules if module.path.stem != "__init__"]
    rooms: dict[Path, int] = {}
    for module in code:
        rooms[module.path.parent] = rooms.get(module.path.parent, 0) + 1
    lines, comments, tokens = map(
        sum, zip(*(_tokens(module.text) for module in modules), strict=True)
    )
    longest = max(code, key=lambda module: len(module.text.splitlines()))
    length, function = max((_length(f), f"{m.name}.{f.name}") for m in code for f in m.functions)
    public = [node for module in code for node in _public(module.tree)]
    typed = [node for node in public if isinstance(node, Function)]
    fullest = max(rooms, key=lambda room: rooms[room])
    known = {module.room for module in code} <= set(ROOMS)
    ring = circle(modules)
    return {
        "folders": str(len(rooms)),
        "files": str(len(code)),
        "most files in a folder": f"{rooms[fullest]} ({fullest})",
        "longest file, lines": f"{len(longest.text.splitlines())} ({longest.name})",
        "longest function, lines": f"{length} ({function})",
        "imports upward": str(len(imports_upward(modules))) if known else "other rooms",
        "a circle of imports": " > ".join(ring) if ring else "none",
        "code lines": str(lines),
        "tokens per code line": f"{tokens / lines:.1f}",
        "comments per 100 code lines": f"{100 * comments / lines:.1f}",
        "public names described": _share(
            sum(ast.get_docstring(node) is not None for node in public), len(public)
        ),
        "public functions typed": _share(sum(map(_is_typed, typed)), len(typed)),
    }


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.0f} % of {whole}"


def _tokens(text: str) -> tuple[int, int, int]:
    """Code lines, comments and tokens of a file; docstrings and comments are no code."""
    prose = _docstring_lines(ast.parse(text))
    lines: set[int] = set()
    comments = count = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        elif token.type not in SILENT and token.start[0] not in prose:
            lines.add(token.start[0])
            count += 1
    return len(lines), comments, count


def _docstring_lines(tree: ast.Module) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            found |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def _length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """List a module's public functions and classes, and the public methods of its classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                members = (member for member in node.body if isinstance(member, Function))
                yield from (member for member in members if not member.name.startswith("_"))


def _is_typed(node: Function | ast.ClassDef) -> bool:
    assert isinstance(node, Function)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    named = [argument for argument in arguments if argument.arg not in ("self", "cls")]
    return node.returns is not None and all(argument.annotation is not None for argument in named)


def at_revision(root: Path, revision: str) -> list[Module]:
    """The modules of a revision of git.

    Raises:
        OmniForcingError: if git does not know it.
    """
    command = ["git", "archive", "--format=tar", revision, PACKAGE.as_posix()]
    answer = subprocess.run(command, cwd=root, capture_output=True)
    if answer.returncode:
        raise OmniForcingError(
            "tools.unknown-revision",
            f"git has no revision {revision!r} here: {answer.stderr.decode().strip()}",
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(fileobj=io.BytesIO(answer.stdout)) as archive,
    ):
        archive.extractall(folder, filter="data")
        return read_package(Path(folder))


def main() -> None:
    """Parse the command line and print the table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "revisions", nargs="*", metavar="REVISION", help="of git, to compare the working tree with"
    )
    revisions = parser.parse_args().revisions

    def run() -> None:
        root = project_root()
        trees = {revision: figures(at_revision(root, revision)) for revision in revisions}
        trees["working tree"] = figures(read_package(root))
        print("| | " + " | ".join(trees) + " |\n" + "|---" * (len(trees) + 1) + "|")
        for name in trees["working tree"]:
            print(f"| {name} | " + " | ".join(tree[name] for tree in trees.values()) + " |")

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
