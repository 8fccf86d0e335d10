"""Measure a training update of Stages I to III, here and in another checkout, in turns.

`python -m benchmarks.updates [--preset pocket] [--against CHECKOUT] [--rounds 7] [STAGE ...]`
trains on noise with random weights, the same in both checkouts, one torch thread in a process for
each. The checkouts take turns, update by update, and each goes first every other round. Prints

    seconds      an update, median and least of the rounds: CPU time of the process
    times        theirs over ours, of medians and of least
    difference   largest of the logged values of the first update, relative to the value

Other processes on the machine make both slower, and not evenly: more rounds help, a free core more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

STAGES = ("bidirectional_dmd", "causal_ode", "self_forcing")
HERE = Path(__file__).parents[1]


class Checkout:
    """A process that trains with a checkout's code and answers each stage's name with an update.

    Args:
        root: the checkout.
        preset: sizes of networks, clips and batches.
    """

    def __init__(self, root: Path, preset: str) -> None:
        # This file runs in both; the package and its configuration are the checkout's.
        environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--preset", preset, "--serve"],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def update(self, stage: str) -> dict[str, Any]:
        """Run one update of a stage; its seconds, and its logged values."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(stage + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve(preset: str) -> None:
    """Answer every line of the standard input, a stage, with one update of it."""
    import torch
    from torch import Tensor

    from omniforcing.core.config import project_root
    from omniforcing.pipeline.config import load_config
    from omniforcing.pipeline.planner.networks import BUILDERS, Sizes

    torch.set_num_threads(1)
    config = load_config([], project_root(), preset)
    sizes = replace(Sizes.from_config(config, project_root()), device="cpu")
    built: dict[str, tuple[Any, ...]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in built:
            torch.manual_seed(0)
            module = BUILDERS[name](config, sizes, torch.float32)
            states = len(config.student.sigmas) + 1 if name == "causal_ode" else 0
            batch = sizes.batch(config, getattr(config, name).optim.batch, states)
            for tensor in (*batch.latents, *batch.text):
                tensor.normal_()
            built[name] = (module, batch, module.configure_optimizers(), iter(range(1 << 30)))
        module, batch, optimisers, steps = built[name]
        began = time.process_time()
        logged = module.training_step(next(steps), batch, optimisers, Tensor.backward)
        seconds = time.process_time() - began
        values = {key: float(value) for key, value in logged.items()}
        print(json.dumps({"seconds": seconds, "values": values}), flush=True)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", default=STAGES, metavar="STAGE")
    parser.add_argument("--preset", default="pocket", help="sizes of networks, clips and batches")
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=7, help="updates of either, after the first")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.preset)
        return
    roots = {"ours": HERE}
    if options.against:
        roots["theirs"] = options.against.resolve()
    checkouts = {name: Checkout(root, options.preset) for name, root in roots.items()}
    for stage in options.stages:
        seconds: dict[str, list[float]] = {name: [] for name in checkouts}
        firsts = {name: checkout.update(stage) for name, checkout in checkouts.items()}
        for number in range(options.rounds):
            for name in list(checkouts)[:: -1 if number % 2 else 1]:
                seconds[name].append(checkouts[name].update(stage)["seconds"])
        figures = {name: (statistics.median(all_), min(all_)) for name, all_ in seconds.items()}
        print(stage, flush=True)
        for name, (median, least) in figures.items():
            print(f"    {name:<8} {median:8.3f} s, least {least:.3f}", flush=True)
        if "theirs" in figures:
            ratios = [b / a for a, b in zip(figures["ours"], figures["theirs"], strict=True)]
            ours, theirs = (firsts[name]["values"] for name in ("ours", "theirs"))
            apart = max(abs(ours[key] - theirs[key]) / abs(theirs[key]) for key in theirs)
            print(f"    times    {ratios[0]:8.2f}, least {ratios[1]:.2f}; difference {apart:.1e}")
    for checkout in checkouts.values():
        checkout.close()


if __name__ == "__main__":
    main()
