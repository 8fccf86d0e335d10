"""What each distillation stage contributes: `python pipelines/ablation.py [--preset NAME] [variants ...]`."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.pipeline.experiments.ablation import FINAL, VARIANTS, Trial, run_ablation


def measure(trial: Trial) -> Mapping[str, Any]:
    """The figures of a variant's final student, taken as stage evaluate takes them."""
    # Here, so that a mistake on the command line need not wait for torch.
    from omniforcing.data.sources import HELDOUT, TRAIN
    from omniforcing.evaluation.bench import split_clips
    from omniforcing.evaluation.evaluate import DRIFT_FACTOR, Subject, evaluate
    from omniforcing.evaluation.nearest import Training
    from omniforcing.pipeline.stages.bench import open_bench
    from omniforcing.training.loop import set_threads

    set_threads(trial.config.trainer.threads)
    config, settings, seconds = trial.config, trial.config.evaluate, trial.config.clips.seconds
    bench = open_bench(config, trial.data / "codec", trial.data / "latents")
    shards = trial.data / "shards"
    training = Training.collect(
        split_clips(shards, TRAIN, settings.train_clips), trial.work / "train"
    )
    subject = Subject(
        split_clips(shards, HELDOUT, settings.clips),
        bench.reconstruct,
        models={trial.label: bench.sampler(FINAL, trial.weights, seconds)},
        rollouts={trial.label: bench.sampler(FINAL, trial.weights, DRIFT_FACTOR * seconds)},
        work=trial.work,
        config=settings,
        seed=config.seed,
    )
    found = evaluate(subject, training)
    return found.models[trial.label]


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
        folder = run_ablation(project_root(), arguments.preset, arguments.variants, measure)
        print(
            f"\ntable and plot: {folder / 'index.html'}   experiments: dvc exp show   runs: make ui"
        )

    sys.exit(run_command(command))


if __name__ == "__main__":
    main()
