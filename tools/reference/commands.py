"""The page of all commands, docs/reference/commands.md, from click's own tree of them."""

from __future__ import annotations

from collections.abc import Iterator

import click

from omniforcing.cli.command import Command, Group
from omniforcing.cli.main import omniforcing

_ABOUT = """# Commands

Everything is a command of `omniforcing`, or `python -m omniforcing` where PATH lacks it. A mistake
is one line, `error[code]: sentence`, with exit code 2; Ctrl-C ends a command with 130, SIGTERM with
143. Overrides `key=value` name keys of [the configuration](config.md).

A shell completes commands, options, presets and stages after one line in its start-up file:

| shell | line |
|---|---|
| bash, in `~/.bashrc` | `eval "$(omniforcing completion bash)"` |
| zsh, in `~/.zshrc` | `eval "$(omniforcing completion zsh)"` |
| fish, in `~/.config/fish/config.fish` | `omniforcing completion fish \\| source` |
"""


def page() -> str:
    """Write the page: per command its usage, what it does, its options with defaults, examples."""
    # click keeps the help option of a command's first context, so this one must be as a user's.
    context = omniforcing.make_context(str(omniforcing.name), [], resilient_parsing=True)
    return "\n".join([_ABOUT, *_sections(omniforcing, context, level=2)])


def _sections(group: click.Group, context: click.Context, level: int) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            continue
        below = click.Context(command, info_name=name, parent=context)
        yield f"{'#' * level} `{below.command_path}`\n"
        yield f"```\n{command.get_usage(below).removeprefix('Usage: ')}\n```\n"
        yield _prose(command)
        if rows := list(_rows(command, below)):
            yield "\n".join(["| | | default |", "|---|---|---|", *rows, ""])
        if isinstance(command, Command | Group) and command.examples:
            yield "\n".join(["```", *command.examples, "```", ""])
        if isinstance(command, click.Group):
            yield from _sections(command, below, level + 1)


def _prose(command: click.Command) -> str:
    """A command's help as paragraphs; what it marks as laid out stays so."""
    paragraphs = []
    for paragraph in (command.help or "").split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines and lines[0] == "\b":
            paragraphs.append("\n".join(["```", *lines[1:], "```"]))
        else:
            paragraphs.append(" ".join(filter(None, lines)))
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _rows(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            record = parameter.get_help_record(context)
            assert record is not None
            name = record[0]
        else:
            name = parameter.make_metavar(context)
        text, _, said = (getattr(parameter, "help", None) or "").partition("  [default: ")
        cells = (f"`{name}`", text, said.removesuffix("]") or _default(parameter, context))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(parameter: click.Parameter, context: click.Context) -> str:
    if parameter.required:
        return "required"
    value = parameter.get_default(context)
    # A switch is off, a list empty; click marks what has no default with a value of its own.
    plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    return f"`{value}`" if plain and value != "" else ""
