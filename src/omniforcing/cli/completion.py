"""Command ``omniforcing completion``: what a shell needs to complete commands, options and names."""

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
    """Print the shell's completion script."""
    found = get_completion_class(shell)
    assert found is not None
    root = context.find_root()
    print(found(root.command, {}, str(root.info_name), COMPLETION_VARIABLE).source())
