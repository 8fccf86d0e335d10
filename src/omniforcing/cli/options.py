"""What several commands take: the preset, overrides of the configuration, names of stages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from omniforcing.core.errors import OmniForcingError

Function = TypeVar("Function", bound=Callable[..., Any])


def split_overrides(words: Sequence[str]) -> tuple[str, ...]:
    """Overrides, one per item; an MLproject parameter arrives with all of them in one word.

    Raises:
        OmniForcingError: for ``preset=NAME``, which is an option.
    """
    overrides = tuple(item for word in words for item in shlex.split(word))
    for item in overrides:
        if item.startswith("preset="):
            name = item.removeprefix("preset=") or "NAME"
            raise OmniForcingError(
                "option.preset", f"{item} is not an override; give --preset {name}"
            )
    return overrides


def preset_option(function: Function) -> Function:
    """Add ``--preset NAME``."""
    return click.option(
        "--preset",
        metavar="NAME",
        shell_complete=_complete_presets,
        help="A file in conf/preset.  [default: the key `preset` of conf/config.yaml]",
    )(function)


def overrides_argument(function: Function) -> Function:
    """Add ``[key=value]...``."""
    return click.argument(
        "overrides",
        nargs=-1,
        metavar="[KEY=VALUE]...",
        callback=lambda _context, _parameter, words: split_overrides(words),
        help="Overrides of the configuration, such as clips.count=16 or cluster=ray.",
    )(function)


def stage_argument(function: Function) -> Function:
    """Add the name of one stage."""
    return click.argument(
        "stage", shell_complete=complete_stages, help="A stage of pipelines/stages.py."
    )(function)


def complete_stages(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    """Names of stages that begin as typed."""
    from omniforcing.core.config import project_root
    from omniforcing.pipeline.declaration import read_specs

    return [spec.name for spec in read_specs(project_root()) if spec.name.startswith(typed)]


def _complete_presets(
    _context: click.Context, _parameter: click.Parameter, typed: str
) -> list[str]:
    from omniforcing.core.config import project_root
    from omniforcing.pipeline.declaration import known_presets

    return [name for name in known_presets(project_root()) if name.startswith(typed)]


def parse_memory(text: str) -> float:
    """Bytes of ``80GB``, ``80`` (GB) or ``74.5GiB``.

    Raises:
        OmniForcingError: if it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB|)", text.strip())
    if not found or not float(found[1]):
        raise OmniForcingError(
            "option.malformed", f"--memory is {text!r}; give a size such as 80GB"
        )
    return float(found[1]) * (2**30 if found[2] == "GiB" else 1e9)
