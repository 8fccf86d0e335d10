"""Command ``omniforcing measure``: measure clips of any origin."""

from __future__ import annotations

from pathlib import Path

import click

from omniforcing.cli.command import Command

_PATH = click.Path(path_type=Path)


def _names(
    _context: click.Context, _parameter: click.Parameter, words: str | None
) -> tuple[str, ...]:
    return tuple(filter(None, (words or "").split(",")))


@click.command(
    cls=Command,
    examples=(
        "omniforcing measure my-videos",
        "omniforcing measure data/pocket/evaluation/clips/self_forcing --against my-videos",
        "omniforcing measure data/pocket/shards --clips 64 --measures onset_motion_margin,loudness",
    ),
)
@click.argument("folder", type=_PATH, help="Videos, or the output of stage shards.")
@click.option("--against", type=_PATH, help="Another folder, whose figures stand next to these.")
@click.option(
    "--measures",
    "names",
    metavar="NAME,...",
    callback=_names,
    help="Measures to take.  [default: all]",
)
@click.option("--clips", "most", type=click.IntRange(1), help="Stop after so many of a folder.")
@click.option("--json", "json_file", type=_PATH, help="Write all figures, of each clip too, here.")
def measure(
    folder: Path,
    against: Path | None,
    names: tuple[str, ...],
    most: int | None,
    json_file: Path | None,
) -> None:
    """Measure sync, picture and sound of clips, without weights or truth.

    Files of any rate and size are read as stage shards reads them; longer ones count as several
    clips of ten seconds.
    """
    from omniforcing.evaluation.measures.command import measure_folders

    print(measure_folders(folder, against, names, most, json_file))
