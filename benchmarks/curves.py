"""Draw a run's training curves over those of the reference run.

`python -m benchmarks.curves --preset pocket` reads `data/pocket/*.curves.csv` and writes a picture:
losses, gradient norms, and sync of samples drawn during training. `--keep` makes this run the
reference, in `docs/curves/pocket`.
"""

import argparse
import shutil
import sys
from pathlib import Path

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError
from omniforcing.evaluation.curves import REFERENCES, draw_training, stage_curves
from omniforcing.evaluation.samplers import MODELS


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="pocket", help="whose curves (default: pocket)")
    parser.add_argument(
        "--out", type=Path, default=Path("curves.png"), help="the picture (default: curves.png)"
    )
    parser.add_argument("--keep", action="store_true", help="make this run the reference")
    arguments = parser.parse_args()

    def draw() -> None:
        root = project_root()
        data, reference = root / "data" / arguments.preset, root / REFERENCES / arguments.preset
        curves = stage_curves(data, MODELS)
        if not curves:
            raise OmniForcingError(
                "file.missing",
                f"{data} holds no *.curves.csv; run `omniforcing run --preset {arguments.preset}`",
            )
        draw_training(arguments.out, curves, stage_curves(reference, MODELS))
        if arguments.keep:
            reference.mkdir(parents=True, exist_ok=True)
            for stage in curves:
                shutil.copyfile(data / f"{stage}.curves.csv", reference / f"{stage}.curves.csv")

    sys.exit(run_command(draw))


if __name__ == "__main__":
    main()
