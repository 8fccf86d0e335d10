"""Digest of the code that a stage's result depends on; prose and formatting do not count.

DVC compares files, so a comment in a low module would make it train everything again. The pipeline
therefore begins with a cheap stage ``code`` that depends on all sources and writes one digest per
stage; every other stage depends on its digest instead of on modules. Plain ``dvc status`` and
``dvc repro`` notice any edit, the stage ``code`` takes a second, and DVC skips each stage whose
digest came out the same (docs/decisions/0001-code-digests.md).

A digest covers every module of ours that is reachable by imports from the stage's module, at the
top of a file or inside a function, except the frame: modules that no result depends on. A module
counts as its syntax tree without comments, docstrings and positions. Imports of ours count by what
the imported module holds and not by where it lies, so moving a module changes no digest.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import sha256_file

PACKAGE = "omniforcing"
SOURCES = f"src/{PACKAGE}"
# Rooms whose config.py holds sections of the configuration alone: DVC compares the values that a
# stage depends on by itself, so a new key or range elsewhere must not run the stage again.
_CONFIGURED = (
    *("core", "codec", "model", "data", "training", "distill", "evaluation", "streaming"),
    *("pipeline", "pipeline/cluster"),
)
# Modules that no result depends on: how a stage is run, checked and logged.
FRAME = frozenset(
    {"__init__", "training/checkpoints", "training/parallel"}
    | {f"tracking/{name}" for name in ("registry", "store")}
    | {f"pocket/{name}" for name in ("foundation", "student")}
    | {f"{room}/config" for room in _CONFIGURED}
    | {f"core/{name}" for name in ("console", "environment", "errors", "files")}
    | {
        f"pipeline/{name}"
        for name in (
            *("code", "declaration", "generate", "runner", "stage", "tracking"),
            "yaml_files",
        )
    }
    | {f"pipeline/cluster/{name}" for name in ("connect", "jobs", "launch", "pool")}
    | {f"pipeline/stages/shared/{name}" for name in ("probe", "samples")}
)
# Fields of syntax nodes that never change what runs; Python's versions fill them differently.
_SILENT_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


@dataclass(frozen=True)
class Imported:
    """A name that a module imports from the project.

    Attributes:
        module: file that defines it.
        name: name in that module; None for the module itself.
        bound: name that it is bound to.
    """

    module: Path
    name: str | None
    bound: str


class Module:
    """A parsed source file: its statements and its imports from the project.

    Args:
        path: the file.
        package: folder of the project's package.

    Raises:
        OmniForcingError: if the file is not Python.
    """

    def __init__(self, path: Path, package: Path) -> None:
        self.path = path
        try:
            self._tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise OmniForcingError(
                "file.unreadable", f"{path}:{error.lineno} is not Python: {error.msg}"
            ) from error
        self.imports = list(_project_imports(self._tree, package))

    @cached_property
    def body(self) -> str:
        """sha256 of the statements, without imports from the project."""
        return _sha256(_plain(self._tree))


class CodeBase:
    """The sources of a checkout; each file is read once.

    Args:
        root: the checkout.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._package = root / SOURCES
        self._modules: dict[Path, Module] = {}
        self._imported: dict[Path, list[Path]] = {}

    def closure(self, script: str, without: tuple[str, ...] = ()) -> list[Path]:
        """List the modules that a script imports, directly or not, itself first.

        The frame is left out, and so are modules that only the frame imports.

        Args:
            script: path relative to the checkout.
            without: path prefixes, relative to the checkout, that are left out like the frame.
        """
        seen = {self._root / script: None}
        waiting = [self._root / script]
        while waiting:
            for path in self._needed(waiting.pop()):
                if path not in seen and not self._left_out(path, without):
                    seen[path] = None
                    waiting.append(path)
        return list(seen)

    def digest(self, script: str, files: Iterable[str] = (), without: tuple[str, ...] = ()) -> str:
        """Compute the sha256 of a script's closure and of the content of files that it reads.

        Args:
            script: path relative to the checkout.
            files: paths relative to the checkout.
            without: path prefixes, relative to the checkout, that are left out like the frame.
        """
        modules = {self._module_digest(path, without) for path in self.closure(script, without)}
        contents = [sha256_file(self._root / file) for file in files]
        # An empty __init__.py does not count: a module may move into a new package.
        return _sha256([sorted(modules - {_EMPTY_MODULE}), sorted(contents)])

    def _module(self, path: Path) -> Module:
        if path not in self._modules:
            self._modules[path] = Module(path, self._package)
        return self._modules[path]

    def _needed(self, path: Path) -> list[Path]:
        """The imported files, and the ``__init__`` of every package that is entered on the way."""
        if path not in self._imported:
            found: dict[Path, None] = {}
            for module in dict.fromkeys(imported.module for imported in self._module(path).imports):
                found[module] = None
                for folder in module.parents:
                    if folder == self._package:
                        break
                    if (folder / "__init__.py").is_file():
                        found[folder / "__init__.py"] = None
            self._imported[path] = list(found)
        return self._imported[path]

    def _left_out(self, path: Path, without: tuple[str, ...]) -> bool:
        name = path.relative_to(self._package).with_suffix("").as_posix()
        return name in FRAME or path.relative_to(self._root).as_posix().startswith(without)

    def _module_digest(self, path: Path, without: tuple[str, ...]) -> str:
        module = self._module(path)
        names = []
        for imported in module.imports:
            left_out = self._left_out(imported.module, without)
            origin = "" if left_out else self._module(imported.module).body
            names.append([origin, imported.name or "", imported.bound])
        return _sha256([module.body, sorted(names)])


def _project_imports(tree: ast.Module, package: Path) -> Iterator[Imported]:
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = _module_file(alias.name, package)
                if module:
                    yield Imported(module, None, alias.asname or alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                bound = alias.asname or alias.name
                if submodule := _module_file(f"{node.module}.{alias.name}", package):
                    yield Imported(submodule, None, bound)
                elif module := _module_file(node.module, package):
                    yield Imported(module, alias.name, bound)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements of a module, those in others too; expressions, most of a tree, hold none."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, field, [])


def _module_file(dotted: str, package: Path) -> Path | None:
    """Return the file of a module of the project; None for other packages and other names."""
    first, *rest = dotted.split(".")
    if first != PACKAGE:
        return None
    place = package.joinpath(*rest)
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _is_silent(node: Any) -> bool:
    """Tell whether a statement is a docstring or an import from the project, counted elsewhere."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.ImportFrom):
        return not node.level and str(node.module).split(".")[0] == PACKAGE
    if isinstance(node, ast.Import):
        return all(alias.name.split(".")[0] == PACKAGE for alias in node.names)
    return False


def _plain(node: Any) -> str:
    """Write a syntax node as text, the same under every supported Python."""
    if isinstance(node, list):
        return f"[{','.join([_plain(item) for item in node if not _is_silent(item)])}]"
    if isinstance(node, ast.Constant):
        # !a: which characters repr escapes depends on the Unicode tables of the interpreter.
        return f"{type(node.value).__name__}:{node.value!a}"
    if not isinstance(node, ast.AST):
        return str(node)
    parts = []
    for name in sorted(set(node._fields) - _SILENT_FIELDS):
        value = getattr(node, name, None)
        if isinstance(node, ast.JoinedStr):
            value = _merged(node.values)
        text = "[]" if value is None else _plain(value)
        # Newer Pythons have more fields; they are empty where older syntax is used.
        if text != "[]":
            parts.append(f"{name}={text}")
    return f"{type(node).__name__}({','.join(parts)})"


def _merged(parts: list[ast.expr]) -> list[ast.expr]:
    """Join neighbouring texts among the parts of an f-string: Pythons split them differently."""
    merged: list[ast.expr] = []
    for part in parts:
        last = merged[-1] if merged else None
        if not isinstance(part, ast.Constant):
            merged.append(part)
        elif isinstance(last, ast.Constant):
            merged[-1] = ast.Constant(str(last.value) + str(part.value))
        elif part.value:
            merged.append(part)
    return merged


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


_EMPTY_MODULE = _sha256([_sha256(_plain(ast.parse(""))), []])
