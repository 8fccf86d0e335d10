"""Page of the configuration: every key with its type, default, range and meaning."""

from __future__ import annotations

from typing import Any

from omniforcing.core.config import Key, Section, describe_keys, to_dict
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.config_file import WRITE

_INTRODUCTION = f"""\
# Configuration

Every key, its type, default, legal values and meaning. A list's range holds for each of its
numbers, and every number must be finite. Later ones win: `conf/config.yaml` (the defaults below,
written by `{WRITE}`), `conf/preset/<preset>.yaml`, `conf/cluster/<cluster>.yaml`,
`key.subkey=value` on a command line. `omniforcing config --preset NAME` prints the result.
"""
_HEAD = "| key | type | default | legal | meaning |\n|---|---|---|---|---|\n"


def page() -> str:
    """Markdown of the page: a table per top section."""
    keys = list(describe_keys(Config()))
    tops = [key for key in keys if "." not in key.key]
    general = [_row(key) for key in tops if not isinstance(key.default, Section)]
    parts = [_INTRODUCTION, "## General\n\n" + _HEAD + "".join(general)]
    for top in tops:
        if isinstance(top.default, Section):
            rows = [_row(key) for key in keys if key.key.startswith(f"{top.key}.")]
            parts.append(f"## {top.key}\n\n{top.about}\n\n{_HEAD}{''.join(rows)}")
    return "\n".join(parts)


def _row(key: Key) -> str:
    section = isinstance(key.default, Section)
    name = "section" if section else key.type.replace("|", "or")
    default = "" if section else f"`{_text(key.default)}`"
    cells = (f"`{key.key}`", name, default, "" if section else key.legal, key.about)
    return f"| {' | '.join(cells)} |\n"


def _text(value: Any) -> str:
    """A default as YAML spells it, on one line."""
    from yaml import safe_dump

    items = value if isinstance(value, list) else [value]
    plain = [
        to_dict(item) if isinstance(item, Section) else getattr(item, "value", item)
        for item in items
    ]
    spelt = plain if isinstance(value, list) else plain[0]
    text = safe_dump(spelt, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n...\n").strip()
