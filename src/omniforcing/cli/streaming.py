"""Commands ``omniforcing stream`` and ``omniforcing serve``: stream from an artifact."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omniforcing.cli.command import Command
from omniforcing.core.environment import ARTIFACT_VARIABLE, TOKEN_VARIABLE
from omniforcing.serving.protocol.messages import DEFAULT_PORT, Limits

if TYPE_CHECKING:
    from omniforcing.streaming.command import EngineOptions

Function = TypeVar("Function", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
LIMITS = {
    "sessions": "Connections at the same time.",
    "seconds": "Length of a stream, in seconds.",
    "prompt_chars": "Length of a prompt, in characters.",
    "image_bytes": "Size of an image, in bytes.",
    "idle_seconds": "Seconds without a sign of life before a client is disconnected.",
    "paused_seconds": "Seconds that a player may stand still, paused or hidden.",
    "lead_seconds": "Seconds that a stream may be ahead of its player.",
    "mistakes": "Invalid messages before a client is disconnected.",
}


def _names(_context: click.Context, _parameter: click.Parameter, words: str) -> tuple[str, ...]:
    return tuple(filter(None, words.split(",")))


def _scales(
    _context: click.Context, _parameter: click.Parameter, values: tuple[tuple[float, str], ...]
) -> tuple[tuple[float, tuple[float, ...]], ...]:
    try:
        return tuple((second, tuple(map(float, text.split(",")))) for second, text in values)
    except ValueError as error:
        raise click.BadParameter("a scale is a number, such as 0.8; several are 0.8,0.5") from error


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that loads an artifact; it gets them as ``engine``."""

    @functools.wraps(function)
    def command(*, no_verify: bool, **options: Any) -> None:
        from omniforcing.streaming.command import EngineOptions

        names = {field.name for field in dataclasses.fields(EngineOptions)} & options.keys()
        engine = {name: options.pop(name) for name in names}
        function(engine=EngineOptions(**engine, verify=not no_verify), **options)

    for option in reversed(
        (
            click.option(
                "--artifact",
                type=PATH,
                envvar=ARTIFACT_VARIABLE,
                help="Folder that the export stage wrote, models:/NAME@ALIAS or "
                "models:/NAME/VERSION in MLflow, or ORG/NAME or ORG/NAME@REVISION on the Hub.  "
                "[default: the student that the package keeps, preset pocket's]",
            ),
            click.option(
                "--device", default="cpu", help="Where to compute: cpu, cuda, cuda:1, ..."
            ),
            click.option(
                "--threads",
                type=int,
                default=1,
                help="CPU threads; more only help larger models.",
            ),
            click.option(
                "--speed-ups",
                metavar="NAME[,NAME...]",
                default="",
                show_default=False,
                callback=_names,
                help="Of the student: compiled (the first blocks wait for it), merged; on a GPU "
                "also concurrent, fp8 (coarser).",
            ),
            click.option("--no-verify", is_flag=True, help="Skip the artifact's checksums."),
            click.option(
                "--lora",
                "loras",
                multiple=True,
                metavar="FILE[:SCALE]",
                help="Lay a LoRA over the student, of diffusers or ComfyUI; may be repeated.",
            ),
            click.option(
                "--precision",
                type=click.Choice(["stored", "fp32", "bf16"]),
                default="stored",
                help="Of student and text encoder; stored: that of the artifact's student.",
            ),
            click.option(
                "--free-text-encoder",
                is_flag=True,
                help="Load the text encoder for each prompt and free it: less memory, slower.",
            ),
            click.option(
                "--watermark",
                metavar="FILE:SHA256",
                help="Add a watermark to the sound: a TorchScript program that you trust.",
            ),
        )
    ):
        command = option(command)
    return command


def limit_options(function: Function) -> Function:
    """Add an option for each limit of the server."""
    for field in reversed(dataclasses.fields(Limits)):
        function = click.option(
            f"--max-{field.name.replace('_', '-')}",
            field.name,
            type=type(field.default),
            default=field.default,
            help=LIMITS[field.name],
        )(function)
    return function


@click.command(
    cls=Command,
    examples=(
        'omniforcing stream --prompt "a red ball bounces high on the floor" --out clip.mp4',
        "omniforcing stream --artifact data/pocket/artifact --prompt rain --endless --out - "
        "| mpv -",
    ),
)
@engine_options
@click.option(
    "--prompt", help="What to see and hear; with --resume, the default is the saved stream's."
)
@click.option("--seconds", type=float, default=8.0, help="Length of the clip.")
@click.option("--endless", is_flag=True, help="Stream until Ctrl-C; the clip is complete.")
@click.option("--seed", type=int, default=0, help="The same seed gives the same clip.")
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="The MP4 to write, replaced when it is whole; - for a player.",
)
@click.option(
    "--then",
    type=(float, str),
    multiple=True,
    metavar="SECONDS PROMPT",
    help="Change the prompt at this second; may be repeated.",
)
@click.option(
    "--rewrite", is_flag=True, help="Recompute the K/V cache at a change, for a sharper cut."
)
@click.option(
    "--lora-scale",
    "scales",
    type=(float, str),
    multiple=True,
    metavar="SECONDS SCALE[,SCALE...]",
    callback=_scales,
    help="Change the scale of each LoRA at this second; may be repeated.",
)
@click.option("--image", type=PATH, help="Start from this picture (PNG, JPEG or WebP).")
@click.option(
    "--continue", "clip", type=PATH, help="Continue this clip, an MP4 of the stream's size."
)
@click.option("--save", type=PATH, help="Write the stream's final state to this file.")
@click.option("--resume", type=PATH, help="Continue a saved stream for --seconds.")
@click.option(
    "--sign",
    type=(PATH, PATH),
    metavar="CERTIFICATE KEY",
    help="Sign the file (C2PA) with a PEM chain of certificates and the key of its first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as json.")
def stream(engine: EngineOptions, **options: Any) -> None:
    """Generate a clip with sound from a prompt, block by block."""
    from omniforcing.streaming.command import StreamOptions, stream_clip

    stream_clip(StreamOptions(engine, **options))


@click.command(
    cls=Command,
    examples=(
        "omniforcing serve",
        "omniforcing serve --artifact data/pocket/artifact",
        "omniforcing serve --artifact models:/omniforcing-pocket@champion --follow 30",
        "omniforcing serve --artifact ORG/NAME",
        "omniforcing serve --artifact new/artifact --beside old/artifact",
        "omniforcing serve --artifact artifact --host 0.0.0.0 --origin https://example.org",
    ),
    help=f"""Stream to browsers.

    The page has a player and a prompt that steers the stream while it plays. By default the server
    accepts connections from this machine alone. With {TOKEN_VARIABLE} in the environment, clients
    must send that token.""",
)
@engine_options
@click.option(
    "--beside",
    type=PATH,
    help="Second artifact, shown next to the first: the page plays both from one prompt and seed; "
    "or teacher, the pocket world's, which makes its clip whole. --lora lies over the first alone.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen at.")
@click.option(
    "--port", type=int, default=DEFAULT_PORT, help="Port to listen at; 0: any that is free."
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Also allow pages of this origin, as https://host:port; may be repeated.",
)
@click.option(
    "--drain-seconds",
    type=float,
    default=10.0,
    help="Seconds that streams may go on after SIGTERM.",
)
@click.option(
    "--follow",
    type=float,
    metavar="SECONDS",
    help="Look every so many seconds at the alias models:/NAME@ALIAS of --artifact, and make new "
    "streams with the version that it names; open ones go on.  [default: keep the first]",
)
@limit_options
def serve(
    engine: EngineOptions,
    beside: Path | None,
    host: str,
    port: int,
    origins: tuple[str, ...],
    drain_seconds: float,
    follow: float | None,
    **limits: Any,
) -> None:
    from omniforcing.serving.serve import serve_streams

    serve_streams(
        engine, Limits(**limits), host, port, origins, drain_seconds, follow=follow, beside=beside
    )


@click.command(
    cls=Command,
    examples=("omniforcing demo", "omniforcing demo --no-browser --port 8765"),
)
@click.option("--port", type=int, default=0, help="Port to listen at; 0: any that is free.")
@click.option("--no-browser", is_flag=True, help="Only print the page's address.")
def demo(port: int, no_browser: bool) -> None:
    """Show the student that the package keeps: start a server and open its page in a browser.

    Only this machine can connect. Ctrl-C ends the server.
    """
    from omniforcing.serving.serve import show_in_browser

    show_in_browser(port, browser=not no_browser)
