"""Commands ``omniforcing push`` and ``omniforcing pull``: hand an artifact on."""

from __future__ import annotations

from pathlib import Path

import click

from omniforcing.cli.command import Command

_SOURCE = (
    "Folder that the export stage wrote or a copy of it, models:/NAME@ALIAS or "
    "models:/NAME/VERSION in MLflow, or ORG/NAME or ORG/NAME@REVISION on the Hub."
)


@click.command(
    cls=Command,
    examples=(
        "omniforcing push data/pocket/artifact ORG/NAME",
        "omniforcing push models:/omniforcing-pocket@champion ORG/NAME --private",
        "omniforcing push data/pocket/artifact /mnt/models/pocket",
    ),
)
@click.argument("source", help=_SOURCE)
@click.argument(
    "target",
    help="Repository ORG/NAME on the Hub; or a folder, with ./ before it where it reads like that.",
)
@click.option(
    "--private", is_flag=True, help="Make a new repository private, whatever its owner's default."
)
def push(source: str, target: str, private: bool) -> None:
    """Publish an artifact on the Hub or in a folder, whole or not at all.

    The target must be new, empty, or hold this very artifact. HF_TOKEN or `hf auth login` give
    access to the Hub, HF_ENDPOINT names another one.
    """
    from omniforcing.streaming.publishing.push import push as publish

    print(publish(source, target, private))


@click.command(
    cls=Command,
    examples=(
        "omniforcing pull ORG/NAME artifact",
        "omniforcing pull models:/omniforcing-pocket@champion artifact",
    ),
)
@click.argument("source", help=_SOURCE)
@click.argument(
    "folder",
    type=click.Path(path_type=Path),
    help="Folder that is new or empty, or holds this very artifact.",
)
def pull(source: str, folder: Path) -> None:
    """Copy an artifact from the Hub, MLflow or a folder into a folder, whole or not at all.

    `stream`, `serve` and Ray Serve take the same names themselves; this is for machines that
    cannot reach them.
    """
    from omniforcing.streaming.publishing.push import pull as copy

    print(copy(source, folder))
