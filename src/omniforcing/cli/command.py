"""Commands whose help ends with examples, and errors of the command line as one sentence."""

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
    """A group of commands, with examples.

    Args:
        args: as of ``click.Group``.
        examples: command lines for the end of the help.
        kwargs: as of ``click.Group``.
    """

    command_class = Command
    group_class = type  # click's way to say that subgroups are of this class too

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})
        self.examples = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of the commands, in the order in which they were added."""
        del ctx
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        del ctx
        _write_examples(formatter, self.examples)


def refusal(error: click.ClickException) -> OmniForcingError:
    """Turn an error of click into one of ours: one sentence that names the nearest known word."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        message = f"{_one_line(error.format_message())}; see `omniforcing --help`"
        return OmniForcingError("option.malformed", message)
    command, path = context.command, context.command_path
    if isinstance(error, click.NoSuchOption):
        known: list[str] = []
        for option in command.get_params(context):
            if isinstance(option, click.Option):
                known += [*option.opts, *option.secondary_opts]
        hint = did_you_mean(error.option_name, known)
        return OmniForcingError(
            "option.unknown", f"`{path}` has no option {error.option_name!r}{hint}"
        )
    if isinstance(error, click.exceptions.NoSuchCommand) and isinstance(command, click.Group):
        hint = did_you_mean(error.command_name, command.list_commands(context))
        return OmniForcingError(
            "option.unknown-command", f"`{path}` has no command {error.command_name!r}{hint}"
        )
    message = _one_line(error.format_message())
    if isinstance(command, click.Group) and not context.args and message == "missing command":
        message = f"name a command: {', '.join(command.list_commands(context))}"
    return OmniForcingError("option.malformed", f"`{path}`: {message}; see `{path} --help`")


def _one_line(message: str) -> str:
    words = " ".join(message.split()).rstrip(".")
    return words[:1].lower() + words[1:]
