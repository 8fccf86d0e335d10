"""Page of the Python API: the public names that programs import, from their docstrings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "src"
# What a program that streams, converts or measures imports, and what for.
MODULES = {
    "omniforcing.streaming.engine": "Stream an artifact.",
    "omniforcing.streaming.live": "A running stream and its chunks.",
    "omniforcing.streaming.artifact": "Open or write an artifact.",
    "omniforcing.streaming.state": "Save a stream and go on from it.",
    "omniforcing.core.layout": "The block table: what each block has, sees and decodes to.",
    "omniforcing.core.latents": "Latents and text features.",
    "omniforcing.core.pair": "The pair of video and audio.",
    "omniforcing.core.schedule": "Formulas of flow matching and guidance.",
    "omniforcing.core.errors": "The exception that users see.",
    "omniforcing.codec.codec": "Encode clips and decode latents.",
    "omniforcing.codec.text": "Features of prompts.",
    "omniforcing.model.rollout": "Generate latents block by block.",
    "omniforcing.model.options": "Speed-ups of the student.",
    "omniforcing.model.weights.student": "Load and save transformers.",
}
_FIELD = re.compile(r"^(\*?\w+): (.*)$")
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")

Definition = ast.FunctionDef | ast.ClassDef


def page() -> str:
    """One section per module, one entry per public name."""
    parts = ["# Python", "", "Names that begin with an underscore, and modules that are not listed"]
    parts += ["here, may change without notice. Shapes are `[B, T, ...]`: batch, then time.", ""]
    parts += ["| module | for |", "|---|---|"]
    for name, about in MODULES.items():
        parts.append(f"| [`{name}`](#{name.replace('.', '')}) | {about} |")
    for name in MODULES:
        parts += ["", *_module(name)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def _module(name: str) -> Iterator[str]:
    path = SOURCES.joinpath(*name.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from (f"## {name}", "")
    yield from _prose(ast.get_docstring(tree))
    for node in tree.body:
        if isinstance(node, Definition) and _is_public(node):
            yield from _entry(node, "###")
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and _is_public(member):
                        yield from _entry(member, "####", f"{node.name}.")


def _is_public(node: Definition) -> bool:
    return not node.name.startswith("_") and ast.get_docstring(node) is not None


def _entry(node: Definition, level: str, owner: str = "") -> Iterator[str]:
    yield from ("", f"{level} {owner}{node.name}", "")
    yield from ("```python", _signature(node), "```", "")
    yield from _prose(ast.get_docstring(node))


def _signature(node: Definition) -> str:
    """The definition as it is written, without its body."""
    if isinstance(node, ast.FunctionDef):
        kinds = [ast.unparse(decorator) for decorator in node.decorator_list]
        shown = [kind for kind in kinds if kind in ("property", "cached_property", "classmethod")]
        head = "".join(f"@{kind}\n" for kind in shown)
        answer = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{head}{node.name}({ast.unparse(node.args)}){answer}"
    init = next((n for n in node.body if getattr(n, "name", "") == "__init__"), None)
    if isinstance(init, ast.FunctionDef):
        return f"{node.name}({ast.unparse(init.args).removeprefix('self').removeprefix(', ')})"
    fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    return f"class {node.name}{f'({bases})' if bases else ''}" + "".join(
        f"\n    {line}" for line in fields
    )


def _prose(docstring: str | None) -> Iterator[str]:
    """A docstring as Markdown: its sections become lists."""
    section = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if _SECTION.match(line):
            section = True
            yield from ("", f"*{line.rstrip(':')}*", "")
            continue
        if section and line.startswith("    "):
            text = line[4:]
            if text.startswith(" "):
                yield f"  {text.strip()}"
            elif field := _FIELD.match(text):
                yield f"- `{field[1]}`: {field[2]}"
            else:
                yield f"- {text}" if not text.startswith("- ") else text
            continue
        section = section and not line.strip()
        yield line
