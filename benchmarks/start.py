"""Processor time and memory that commands take from a cold start, beside another checkout's.

    python -m benchmarks.start --artifact data/smoke/artifact --against ../before

Each command runs in a new interpreter, in rounds that alternate between the checkouts, so that
other work on the machine weighs on both alike. Shown are user CPU seconds, least and median of the
rounds, seconds of wall clock and the most memory that a process held, in MB, medians both, and the
ratio of the medians of CPU seconds.

Commands:
    help, config, stream-help   the command line alone
    stream                      a cold stream of two seconds from ``--artifact``
    stage NAME                  loading what stage NAME begins with
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError

STAGES = ("latents", "trajectories", "evaluate", "export", "self_forcing")
# A training stage loads the loop when it begins to train; the import that it then does.
TRAINS = ("self_forcing",)


@dataclass(frozen=True)
class Cost:
    """What one run of a command took.

    Attributes:
        user: user CPU seconds of the process and its children.
        wall: seconds.
        peak: most bytes that the process, or one of its children, held.
    """

    user: float
    wall: float
    peak: int


def commands(artifact: Path | None, out: Path) -> dict[str, list[str]]:
    """List arguments of the interpreter by the command's name.

    Args:
        artifact: folder to stream from; None leaves the stream out.
        out: file to stream into.
    """
    cli = ["-m", "omniforcing"]
    found = {
        "help": [*cli, "--help"],
        "config": [*cli, "config"],
        "stream-help": [*cli, "stream", "--help"],
    }
    if artifact is not None:
        told = ["--artifact", str(artifact), "--prompt", "a red ball bounces", "--seconds", "2"]
        found["stream"] = [*cli, "stream", *told, "--out", str(out)]
    for stage in STAGES:
        code = (
            "from omniforcing.pipeline import tracking; from mlflow import MlflowClient; "
            f"import omniforcing.pipeline.stages.{stage}"
        )
        if stage in TRAINS:
            code += ", omniforcing.training.loop"
        found[f"stage {stage}"] = ["-c", code]
    return found


def measure(
    words: Sequence[str], checkout: Path, variables: Mapping[str, str] | None = None
) -> Cost:
    """Run a command of a checkout once in a new interpreter, with further environment variables.

    Raises:
        OmniForcingError: if it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), **(variables or {})}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=checkout,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        last = said.read().decode(errors="replace")[-300:].strip()
    if process.returncode:
        raise OmniForcingError(
            "benchmarks.command-failed",
            f"`{' '.join(words)}` failed in {checkout}: {last}; mend it",
        )
    return Cost(usage.ru_utime, wall, 1024 * usage.ru_maxrss)


def compare(
    checkouts: Sequence[Path], artifact: Path | None, rounds: int, only: Sequence[str]
) -> dict[str, dict[str, list[Cost]]]:
    """Measure every command in alternating rounds; returns costs by command and checkout."""
    found: dict[str, dict[str, list[Cost]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in commands(artifact, Path(scratch, "clip.mp4")).items():
            if only and name not in only:
                continue
            costs = found[name] = {str(checkout): [] for checkout in checkouts}
            for _ in range(rounds):
                for checkout in checkouts:
                    costs[str(checkout)].append(measure(words, checkout))
    return found


def table(found: dict[str, dict[str, list[Cost]]]) -> str:
    """Write costs as lines of text; the first checkout's share of the last one's at the end."""
    heads = f"{'user min':>10}{'median':>8}{'wall':>8}{'MB':>8}{'ratio':>8}"
    lines = [f"{'command':<22}{'checkout':<10}{heads}"]
    for name, costs in found.items():
        medians = []
        for index, runs in enumerate(costs.values()):
            users = [run.user for run in runs]
            medians.append(median(users))
            shown = f"{min(users):>10.2f}{medians[-1]:>8.2f}{median(r.wall for r in runs):>8.1f}"
            shown += f"{median(r.peak for r in runs) / 1e6:>8.0f}"
            label = "against" if index else "this"
            ratio = f"{medians[0] / medians[-1]:>8.2f}" if index else ""
            lines.append(f"{name:<22}{label:<10}{shown}{ratio}")
    return "\n".join(lines)


def run() -> None:
    """Read the command line, measure, and print a table or json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, help="folder to stream from")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", default=[], help="name of a command")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    checkouts = [project_root(), *([options.against.resolve()] if options.against else [])]
    artifact = None if options.artifact is None else options.artifact.resolve()
    found = compare(checkouts, artifact, options.rounds, options.only)
    if options.json:
        plain = {
            n: {c: [vars(r) for r in runs] for c, runs in by.items()} for n, by in found.items()
        }
        print(json.dumps(plain))
    else:
        print(table(found))


if __name__ == "__main__":
    sys.exit(run_command(run))
