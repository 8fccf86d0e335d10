"""The command ``omniforcing``. Each subcommand is imported only when it is asked for: an inference machine lacks the rest."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from omniforcing import __version__
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError

# Name: module that offers add_arguments(parser) and run(arguments), and its one line of help.
COMMANDS = {
    "stream": (
        "omniforcing.streaming.command",
        "generate a clip with sound from a prompt, block by block",
    ),
    "serve": (
        "omniforcing.serving.serve",
        "stream to browsers: a page with a player and a prompt that steers while it plays",
    ),
    "inspect": (
        "omniforcing.data.inspect",
        "show what a folder of shards or latents holds, with a contact sheet",
    ),
    "weights": (
        "omniforcing.model.weights.command",
        "inspect LTX-2 weights, or convert them between formats",
    ),
    "plan": (
        "omniforcing.pipeline.planner.plan",
        "say what GPUs a preset's training takes, and which settings fit",
    ),
    "pipeline": (
        "omniforcing.pipeline.generate",
        "make every preset's dvc.yaml of pipelines/stages.py, or check them",
    ),
    "config": ("omniforcing.cli", "print the resolved configuration, or write conf/config.yaml"),
}
EXAMPLES = """examples:
  omniforcing stream --artifact data/pocket/artifact --prompt "a red ball bounces" --seconds 8 --seed 1 --out clip.mp4
  omniforcing serve --artifact data/pocket/artifact
  omniforcing inspect data/pocket/shards
  omniforcing weights import ltx-2-19b-dev.safetensors weights/LTX-2
  omniforcing plan --preset ltx2 --gpus 32 --memory 80GB
  omniforcing pipeline --write
  omniforcing config --preset smoke clips.count=16
  omniforcing config --write
  omniforcing COMMAND --help"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``omniforcing config``."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key.subkey=value", help="overrides to apply"
    )
    parser.add_argument(
        "--preset", help="a name in conf/preset (default: the key `preset` of conf/config.yaml)"
    )
    file = parser.add_mutually_exclusive_group()
    file.add_argument("--write", action="store_true", help="write conf/config.yaml anew")
    file.add_argument("--check", action="store_true", help="fail if conf/config.yaml is stale")


def run(arguments: argparse.Namespace) -> None:
    """Print the configuration that a stage would see, or write or check conf/config.yaml."""
    from yaml import safe_dump

    if arguments.write or arguments.check:
        from omniforcing.core.config import project_root
        from omniforcing.pipeline.config_file import FILE, check_config_file, write_config_file

        if arguments.check:
            check_config_file(project_root())
        elif write_config_file(project_root()):
            print(f"written: {FILE}")
        return
    from omniforcing.core.config import to_dict
    from omniforcing.pipeline.config import load_config

    print(
        safe_dump(
            to_dict(load_config(arguments.overrides, preset=arguments.preset)), sort_keys=False
        ),
        end="",
    )


def _load(command: str) -> object:
    try:
        return importlib.import_module(COMMANDS[command][0])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("omniforcing"):
            raise
        extra = "serve" if command == "serve" else "pipeline"
        raise OmniForcingError(
            f"`omniforcing {command}` needs the package {error.name}; install it with pip install 'omniforcing[{extra}]'"
        ) from error


def _top_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<10}{about}" for name, (_, about) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="omniforcing",
        usage="omniforcing COMMAND ...",
        description=f"Streaming joint audio-video generation.\n\ncommands:\n{commands}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"omniforcing {__version__}")
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run one subcommand and exit: 0, 2 with a sentence after an error, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if words is None else words)
    # Only the first word is parsed here, so that one command's module is loaded and not all of them.
    command = _top_parser().parse_args(given[:1] or ["--help"]).command

    def chosen() -> None:
        module, about = _load(command), COMMANDS[command][1]
        parser = argparse.ArgumentParser(
            prog=f"omniforcing {command}", description=f"{about[0].upper()}{about[1:]}."
        )
        module.add_arguments(parser)  # type: ignore[attr-defined]
        module.run(parser.parse_args(given[1:]))  # type: ignore[attr-defined]

    sys.exit(run_command(chosen))


if __name__ == "__main__":
    main()
