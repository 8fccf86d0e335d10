"""Command ``omniforcing completion``: shell completion of commands, options and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from omniforcing.cli.command import Command
from omniforcing.core.environment import COMPLETION_VARIABLE


@click.command(
    cls=Command,
    examples=(
        'eval "$(omniforcing completion bash)"                       # in ~/.bashrc',
        "omniforcing completion fish > ~/.config/fish/completions/omniforcing.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="Which shell.")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    root = context.find_root()
    print(completion_class(root.command, {}, str(root.info_name), COMPLETION_VARIABLE).source())
