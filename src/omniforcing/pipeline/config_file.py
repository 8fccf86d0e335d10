"""Generate ``conf/config.yaml`` from the schema: every key with its default and its docstring."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omniforcing.core.config import ConfigError, Section, field_docstrings, to_dict
from omniforcing.core.files import atomic_write
from omniforcing.pipeline.config import Config

FILE = "conf/config.yaml"
WRITE = "omniforcing config --write"
WIDTH, COMMENTS_AT = 100, 36
HEAD = f"""\
# Every key with its default, made by `{WRITE}` of src/omniforcing/*/config.py:
# edit only the keys `preset` and `cluster` here. Later ones win: this file,
# conf/preset/<preset>.yaml, conf/cluster/<cluster>.yaml, `key.subkey=value` on a command line.
# In files of your own write floats as 1.0e-3, and no ${{...}}: DVC stores the text of a file.
"""


def write_config_file(root: Path) -> bool:
    """Renew ``conf/config.yaml`` of a checkout, keeping its values of ``preset`` and ``cluster``.

    Returns:
        Whether it changed.
    """
    path = root / FILE
    wanted = _wanted(path)
    if path.is_file() and path.read_text(encoding="utf-8") == wanted:
        return False
    atomic_write(path, wanted)
    return True


def check_config_file(root: Path) -> None:
    """Check that ``conf/config.yaml`` of a checkout is up to date.

    Raises:
        ConfigError: if it is stale, naming the command that renews it.
    """
    path = root / FILE
    if not path.is_file() or path.read_text(encoding="utf-8") != _wanted(path):
        raise ConfigError("config.stale-file", f"{path} is stale; run `{WRITE}`")


def config_text(preset: str, cluster: str) -> str:
    """Return the text of the file, for a tracked preset and a cluster."""
    return "\n".join([HEAD, *_lines(Config(preset=preset), 0, {"cluster": cluster})]) + "\n"


def _wanted(path: Path) -> str:
    from yaml import YAMLError, safe_load

    try:
        current = safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except YAMLError:
        current = None  # a broken file is replaced
    values = current if isinstance(current, dict) else {}
    preset, cluster = values.get("preset", Config.preset), values.get("cluster", "local")
    return config_text(str(preset), str(cluster))


def _lines(section: Section, depth: int, replaced: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a section; ``replaced`` holds values to write instead of sections."""
    about, indent = field_docstrings(type(section)), "  " * depth
    for f in dataclasses.fields(section):
        value = replaced.get(f.name, getattr(section, f.name))
        comment = about[f.name]
        if isinstance(value, Section) and not value.one_line:
            if depth == 0:
                yield ""
            yield from _with_comment(f"{indent}{f.name}:", comment, indent)
            yield from _lines(value, depth + 1, {})
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            yield from _with_comment(f"{indent}{f.name}:", comment, indent)
            for item in value:
                yield f"{indent}  - {_flow(to_dict(item))}"
        else:
            plain = to_dict(section)[f.name] if f.name not in replaced else value
            yield from _with_comment(f"{indent}{f.name}: {_flow(plain)}", comment, indent)


def _with_comment(line: str, comment: str, indent: str) -> Iterator[str]:
    """Yield a line with its comment at its end, or above it where it does not fit."""
    one_line = f"{line.ljust(COMMENTS_AT - 2)}  # {comment}"
    if len(one_line) <= WIDTH:
        yield one_line
        return
    prefix = f"{indent}# "
    yield from textwrap.wrap(comment, WIDTH, initial_indent=prefix, subsequent_indent=prefix)
    yield line


def _flow(value: Any) -> str:
    """Write a value on one line of YAML."""
    from yaml import safe_dump

    # safe_dump writes 1.0e-05, never 1e-05, which YAML 1.1 reads as text.
    text = safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n...\n").strip()
