"""Commands whose help ends with examples and whose mistakes are one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from omniforcing.core.errors import OmniForcingError, did_you_mean


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    if examples:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {example}\n" for example in examples))


class Command(click.Command):
    """A command with examples.

    Args:
        args: as of ``click.Command``.
        examples: command lines for the end of the help.
        kwargs: as of ``click.Command``.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        del ctx
        _write_examples(formatter, self.examples)


class Group(click.Group):
    """A group of commands, with examples."""

    command_class = Command
    group_class = type  # groups within it are of this class too

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, no_args_is_help=False, **kwargs)
        self.examples = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order in which they were added."""
        del ctx
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        del ctx
        _write_examples(formatter, self.examples)


def refusal(error: click.ClickException) -> OmniForcingError:
    """The error of ours for a command line that click refuses: one sentence, the nearest named."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return OmniForcingError("option.malformed", _one_line(error.format_message()))
    command, path = context.command, context.command_path
    if isinstance(error, click.NoSuchOption):
        known = [
            name
            for option in command.get_params(context)
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
        ]
        near = did_you_mean(error.option_name, known)
        return OmniForcingError(
            "option.unknown", f"`{path}` has no option {error.option_name!r}{near}"
        )
    if isinstance(error, click.exceptions.NoSuchCommand) and isinstance(command, click.Group):
        near = did_you_mean(error.command_name, command.list_commands(context))
        return OmniForcingError(
            "option.unknown-command", f"`{path}` has no command {error.command_name!r}{near}"
        )
    said = _one_line(error.format_message())
    return OmniForcingError("option.malformed", f"`{path}`: {said}; see `{path} --help`")


def _one_line(message: str) -> str:
    words = " ".join(message.split()).rstrip(".")
    return words[:1].lower() + words[1:]
