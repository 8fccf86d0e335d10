"""Options that several commands take: the preset, overrides of the configuration, stages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from omniforcing.core.errors import OmniForcingError

Function = TypeVar("Function", bound=Callable[..., Any])


def split_overrides(words: Sequence[str]) -> tuple[str, ...]:
    """Split words of the command line into overrides.

    An MLproject parameter arrives with all overrides in one word. A word that is one override is
    left as it is: its spaces are those of a value, and its quotes are YAML's.

    Args:
        words: words of the form ``key=value``, or several of them with spaces between.

    Raises:
        OmniForcingError: for ``preset=NAME``, which is an option instead.
    """
    overrides = tuple(item for word in words for item in _split_word(word))
    for item in overrides:
        if item.startswith("preset="):
            name = item.removeprefix("preset=") or "NAME"
            raise OmniForcingError(
                "option.preset-as-override", f"{item} is not an override; give --preset {name}"
            )
    return overrides


def _split_word(word: str) -> list[str]:
    try:
        parts = shlex.split(word)
    except ValueError:  # an apostrophe, as in a folder's name
        return [word]
    several = len(parts) > 1 and all(re.match(r"[A-Za-z_][\w.]*=", part) for part in parts)
    return parts if several or not parts else [word]


def preset_option(function: Function) -> Function:
    """Add the option ``--preset NAME`` to a command."""
    return click.option(
        "--preset",
        metavar="NAME",
        shell_complete=_complete_presets,
        help="A file in conf/preset.  [default: the key `preset` of conf/config.yaml]",
    )(function)


def overrides_argument(function: Function) -> Function:
    """Add the arguments ``[KEY=VALUE]...`` to a command."""
    return click.argument(
        "overrides",
        nargs=-1,
        metavar="[KEY=VALUE]...",
        callback=lambda _context, _parameter, words: split_overrides(words),
        help="Overrides of the configuration, such as clips.count=16 or cluster=ray.",
    )(function)


def stage_argument(function: Function) -> Function:
    """Add the argument ``STAGE`` to a command."""
    return click.argument(
        "stage", shell_complete=complete_stages, help="A stage of pipelines/stages.py."
    )(function)


def complete_stages(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    """List the names of stages that begin with what is typed."""
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
    """Parse a size of memory such as ``80GB``, ``80`` (GB) or ``74.5GiB``.

    Returns:
        Bytes.

    Raises:
        OmniForcingError: if the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB|)", text.strip())
    if not match or not float(match[1]):
        raise OmniForcingError(
            "option.malformed", f"--memory is {text!r}; give a size such as 80GB"
        )
    return float(match[1]) * (2**30 if match[2] == "GiB" else 1e9)
