"""Measure the streamed student against the teacher's offline sampler, decoding included.

`python -m benchmarks.stream --preset pocket` samples clips of equal length in one run, from the
pipeline's outputs below `data/pocket`, and prints one JSON object.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.evaluation.samplers import MODELS
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.stages.shared.factory import open_factory
from omniforcing.pipeline.stages.shared.speed import against_the_teacher


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="pocket", help="whose data to use (default: pocket)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    arguments = parser.parse_args()

    def measure() -> None:
        torch.set_num_threads(arguments.threads)
        root = project_root()
        config = load_config(root=root, preset=arguments.preset)
        data = root / "data" / arguments.preset
        factory = open_factory(config, data / "codec", data / "latents")
        with tempfile.TemporaryDirectory() as work:
            folders, artifact = {name: data / name for name in MODELS}, Path(work, "artifact")
            figures = against_the_teacher(
                config, factory, folders, data / "codec", artifact, config.export.prompt
            )
        print(json.dumps(figures, indent=2))

    sys.exit(run_command(measure))


if __name__ == "__main__":
    main()
