"""Page of all errors, docs/reference/errors.md, read from the code without importing it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "pipelines", "benchmarks", "tools")
BASE = "OmniForcingError"
CODE = re.compile(r"[a-z]+(-[a-z]+)*\.[a-z0-9]+(-[a-z0-9]+)*")
# First words of codes for what can go wrong in every room; any other is the name of a room that
# raises it.
SHARED = ("adapter", "config", "device", "disk", "file", "layout", "option", "package")

_ABOUT = """# Errors

What a user can mend is told in one line, `error[code]: sentence`, with exit code 2. The code names the kind of error and
stays; the sentence may change. In the sentences below, `{braces}` stand for what was found. A `Rejected` clip does not end
a command: its code's second half, in words, is the reason that `manifest.json` counts.
"""


@dataclass(frozen=True)
class Site:
    """A place that makes an error.

    Attributes:
        code: None if it cannot be read, because it is computed.
        sentences: templates; several where an expression chooses among literals.
        module: file relative to the checkout.
        line: of the call.
        rooms: first words that the code may have, apart from shared ones: the parts of the file's
            path, and of the file that defines the error's class.
    """

    code: str | None
    sentences: tuple[str, ...]
    module: str
    line: int
    rooms: frozenset[str]


def sites(root: Path = ROOT) -> list[Site]:
    """Find every call of ``OmniForcingError`` and its subclasses, by file and line."""
    modules = {
        path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
    }
    kinds = _kinds(modules)
    return [site for name, tree in modules.items() for site in _sites(tree, name, kinds)]


def page(root: Path = ROOT) -> str:
    """Write docs/reference/errors.md: per code its sentences and the modules that raise it."""
    by_code: dict[str, list[Site]] = defaultdict(list)
    for site in sites(root):
        by_code[str(site.code)].append(site)
    lines = [_ABOUT]
    room = ""
    for code in sorted(by_code):
        if code.partition(".")[0] != room:
            room = code.partition(".")[0]
            lines.append(f"## {room}\n")
        lines.append(f"### `{code}`\n")
        told = {(text, site.module) for site in by_code[code] for text in site.sentences}
        lines += [f"- {text} (`{module}`)" for text, module in sorted(told)]
        lines.append("")
    return "\n".join(lines)


def _kinds(modules: Mapping[str, ast.Module]) -> dict[str, str]:
    """The classes of errors, each with the file that defines it."""
    bases = {
        node.name: (name, {_name(base) for base in node.bases})
        for name, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    kinds = {BASE: ""}
    while more := {
        kind: name
        for kind, (name, above) in bases.items()
        if above & kinds.keys() and kind not in kinds
    }:
        kinds |= more
    return kinds


def _sites(tree: ast.Module, module: str, kinds: Mapping[str, str]) -> Iterator[Site]:
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func) in kinds
    ]
    for call in sorted(calls, key=lambda node: node.lineno):
        code, *rest = call.args or [ast.Constant(None)]
        literal = code.value if isinstance(code, ast.Constant) else None
        sentences = _templates(rest[0]) if rest else ("{message}",)
        rooms = _parts(module) | _parts(kinds[_name(call.func)])
        known = literal if isinstance(literal, str) else None
        yield Site(known, sentences, module, call.lineno, rooms)


def _parts(module: str) -> frozenset[str]:
    return frozenset(part.removesuffix(".py") for part in Path(module).parts) - {"src"}


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def _templates(node: ast.expr) -> tuple[str, ...]:
    """The sentences that an expression can be, with names in braces for what is filled in."""
    if isinstance(node, ast.Constant):
        return (" ".join(str(node.value).split()),)
    if isinstance(node, ast.JoinedStr):
        parts = (
            str(part.value) if isinstance(part, ast.Constant) else _placeholder(part)
            for part in node.values
        )
        return (" ".join("".join(parts).split()),)
    if isinstance(node, ast.IfExp):
        return _templates(node.body) + _templates(node.orelse)
    return (_placeholder(node),)


def _placeholder(node: ast.expr) -> str:
    """``{word}`` for a filled-in value: the last name in its expression that is not a call's."""
    value = node.value if isinstance(node, ast.FormattedValue) else node
    called = {id(call.func) for call in ast.walk(value) if isinstance(call, ast.Call)}
    names = [
        _name(part)
        for part in ast.walk(value)
        if isinstance(part, ast.Name | ast.Attribute) and id(part) not in called
    ]
    return f"{{{names[0].lower().lstrip('_') if names else 'value'}}}"
