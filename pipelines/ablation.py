"""What each distillation stage contributes: `python pipelines/ablation.py [--preset NAME] [variants ...]`."""

import argparse
import sys

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.pipeline.experiments.ablation import VARIANTS, run_ablation


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description="Train variants of the distillation as DVC experiments and measure them beside the baseline, which "
        "pipelines/main.py must have run. Killed, it continues where it stopped.",
        epilog="examples: ablation.py   |   ablation.py --preset smoke without-I without-II",
    )
    parser.add_argument("variants", nargs="*", help=f"which (default: all): {', '.join(VARIANTS)}")
    parser.add_argument(
        "--preset",
        help="a name in conf/preset (default: the tracked key `preset` of conf/config.yaml)",
    )
    arguments = parser.parse_args()

    def command() -> None:
        # Here, so that a mistake on the command line need not wait for torch.
        from omniforcing.pipeline.experiments.measure import measure

        folder = run_ablation(project_root(), arguments.preset, arguments.variants, measure)
        print(
            f"\ntable and plot: {folder / 'index.html'}   experiments: dvc exp show   runs: make ui"
        )

    sys.exit(run_command(command))


if __name__ == "__main__":
    main()
