"""Command ``omniforcing doctor``: what this machine and installation have and lack."""

from __future__ import annotations

import click

from omniforcing.cli.command import Command


@click.command(
    cls=Command,
    examples=("omniforcing doctor", "omniforcing doctor --json > doctor.json"),
)
@click.option("--json", "as_json", is_flag=True, help="Print json.")
def doctor(as_json: bool) -> None:
    """Say what this machine and installation have, and what is wrong with the way out.

    Versions, kept files and their checksums, codecs, devices, ports, folders and environment
    variables. The exit code is 1 if something that is needed is wrong.
    """
    from omniforcing.doctor.report import report

    raise SystemExit(report(as_json))
