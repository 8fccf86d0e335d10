"""Command ``omniforcing``: the group of all commands, and its entry point."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial

import click
from click.shell_completion import shell_complete

from omniforcing import __version__
from omniforcing.cli import (
    cluster,
    completion,
    data,
    doctor,
    measure,
    pipeline,
    plan,
    publish,
    streaming,
)
from omniforcing.cli.command import Group, refusal
from omniforcing.core.console import run_command
from omniforcing.core.environment import COMPLETION_VARIABLE, FORKS_VARIABLE
from omniforcing.core.errors import OmniForcingError

NAME = "omniforcing"
SERVING = ("starlette", "uvicorn", "websockets", "prometheus_client")  # of the extra `serve`

omniforcing = Group(
    NAME,
    help="Streaming joint audio-video generation.",
    context_settings={
        "show_default": True,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    examples=(
        "omniforcing run --preset smoke",
        "omniforcing demo",
        'omniforcing stream --prompt "a red ball bounces high on the floor" --out clip.mp4',
        "omniforcing COMMAND --help",
    ),
)
click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")(omniforcing)
for command in (
    *(pipeline.run, pipeline.stage, cluster.job, cluster.kuberay, pipeline.ablation),
    *(pipeline.release, publish.push, publish.pull, plan.plan),
    *(
        streaming.stream,
        streaming.serve,
        streaming.demo,
        data.inspect,
        measure.measure,
        measure.compare,
        measure.play,
        data.weights,
    ),
    *(pipeline.config, pipeline.pipeline, doctor.doctor, completion.completion),
):
    omniforcing.add_command(command)


def main(words: Sequence[str] | None = None) -> None:
    """Run one command and exit the process.

    Args:
        words: words of the command line; those of this process if None.

    Raises:
        SystemExit: with 0 on success, 2 after an error, which is printed as one sentence, or 130
            after Ctrl-C.
    """
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        sys.exit(shell_complete(omniforcing, {}, NAME, COMPLETION_VARIABLE, instruction))
    given = list(sys.argv[1:] if words is None else words)
    if given[:1] == [pipeline.stage.name] and FORKS_VARIABLE in os.environ:
        from omniforcing.pipeline.forking import end_like, run_forked

        code = run_forked(given)
        if code is not None:
            end_like(code)
    sys.exit(run_command(partial(_run, given or ["--help"])))


def _run(words: list[str]) -> None:
    try:
        with omniforcing.make_context(NAME, list(words)) as context:
            omniforcing.invoke(context)
    except click.exceptions.Exit as end:
        raise SystemExit(end.exit_code) from None
    except click.ClickException as error:
        raise refusal(error) from error
    except ModuleNotFoundError as error:
        # A module of the project that is missing is a fault of the code, not of the installation.
        if error.name is None or error.name.split(".")[0] == NAME:
            raise
        extra = "serve" if error.name.split(".")[0] in SERVING else "pipeline"
        raise OmniForcingError(
            "package.missing",
            f"`omniforcing {words[0]}` needs the package {error.name}; "
            f"install it with pip install 'omniforcing[{extra}]'",
        ) from error
