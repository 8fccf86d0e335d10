"""Presets for machines that only measure: read with OmegaConf, or with PyYAML without it."""

from __future__ import annotations

import dataclasses
import typing
from enum import Enum
from importlib.util import find_spec
from typing import Any

from omniforcing.core.config import project_root
from omniforcing.pipeline.config import Config


def load_preset(name: str) -> Config:
    """Load a preset's configuration.

    Raises:
        OmniForcingError: if it cannot be read.
    """
    if find_spec("omegaconf"):
        from omniforcing.pipeline.config import load_config

        return load_config(root=project_root(), preset=name)
    return load_with_yaml(name)


def load_with_yaml(name: str) -> Config:
    """Load a preset with PyYAML, which transformers installs; unknown keys raise ``KeyError``."""
    from yaml import safe_load

    folder = project_root() / "conf"
    config = Config()
    own = safe_load((folder / "preset" / f"{name}.yaml").read_text(encoding="utf-8"))
    presets = [own["base"], name] if "base" in own else [name]
    for path in ("config.yaml", *(f"preset/{preset}.yaml" for preset in presets)):
        values = safe_load((folder / path).read_text(encoding="utf-8"))
        for key in ("cluster", "base"):  # names of files; no benchmark needs a cluster's
            values.pop(key, None)
        config = _merge(config, values)
    return _merge(config, {"preset": name})


def _merge(section: Any, values: dict[str, Any]) -> Any:
    """Replace fields of a config dataclass, converting each value to its field's type."""
    hints = typing.get_type_hints(type(section))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        hint, current = hints[key], getattr(section, key)
        arguments = typing.get_args(hint)
        # The dataclass of a nested section; ``Section | None`` holds it as an argument.
        nested: Any = next((t for t in (hint, *arguments) if dataclasses.is_dataclass(t)), None)
        if value is None:
            changes[key] = None
        elif typing.get_origin(hint) is list:
            element: Any = arguments[0]
            sections = dataclasses.is_dataclass(element)
            if sections:
                changes[key] = [_merge(element(), item) for item in value]
            else:
                changes[key] = [element(item) for item in value]
        elif nested is not None:
            changes[key] = _merge(nested() if current is None else current, value)
        elif isinstance(current, Enum):
            changes[key] = type(current)(value)
        elif isinstance(current, float):
            changes[key] = float(value)  # YAML reads 1 as an int
        else:
            changes[key] = value
    return dataclasses.replace(section, **changes)
