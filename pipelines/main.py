"""Run the pipeline for one preset: `python pipelines/main.py [--preset NAME] [stages ...]`."""

import argparse
import sys

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.pipeline.dry_run import dry_run
from omniforcing.pipeline.runner import run_pipeline


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description="Bring stages up to date through DVC, under one MLflow parent run. Killed, it continues where it stopped.",
        epilog="examples: main.py --preset smoke   |   main.py teacher   |   main.py --preset small --dry-run",
    )
    parser.add_argument(
        "stages", nargs="*", help="stages to bring up to date, with all they need (default: all)"
    )
    parser.add_argument(
        "--preset",
        help="a name in conf/preset (default: the tracked key `preset` of conf/config.yaml)",
    )
    parser.add_argument(
        "--foundation",
        action="store_true",
        help="train codec and teacher and keep them in the package",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="try every stage at its real size on a few clips; keep nothing",
    )
    # An empty MLproject parameter arrives as an empty word, several stages as one.
    arguments = parser.parse_args([word for given in sys.argv[1:] for word in given.split()])
    if arguments.dry_run and (arguments.stages or arguments.foundation):
        parser.error("a dry run is of every stage of a preset; give --dry-run with --preset alone")

    def run() -> None:
        if arguments.dry_run:
            dry_run(project_root(), arguments.preset)
        else:
            run_pipeline(
                project_root(),
                arguments.preset,
                arguments.stages,
                train_foundation=arguments.foundation,
            )

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
