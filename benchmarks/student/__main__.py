"""Measure the streaming student's speed and memory, against its alternatives in the same run.

`python -m benchmarks.student --config tiny|pocket|ltx2 --seconds 60 --json` prints one JSON object.
Weights are random, and the process has streamed before.

    fps, block_p50_s, block_p95_s  of a stream of --seconds, from the first block with a full window
    ttfc_s                         prompt's features to block 1, the first that moves
    flatness                       p95 of the last ten blocks over p95 of the first eleven
    peak_mb_early, peak_mb_late    memory at the same blocks
    matmul_share                   operations per second over those of one large product
    split                          median seconds of steps, refresh and decoding
    ratio_bidirectional            time of diffusers' bidirectional forward, same steps and clip of
                                   16 video latents, over the student's
    ratio_plain                    the same for the cached forward of public code (`plain.py`)
    difference_plain               largest difference of its blocks over their largest value
    ratio_floor                    time of a block's matrix products and attention calls alone, in a
                                   loop without a model, over the student's
    ratio_without                  time of a block without each speed-up, over the student's

`--config ltx2 --layers 2 --heads 4 --device cpu --grid 2 3` tries the 19B path on any machine.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.student.bench import StreamCost, StudentBench
from benchmarks.student.cases import CASES, random_student
from benchmarks.student.operations import block_operations, matmul_peak
from benchmarks.student.ratios import check_equal, ratio_floor, ratios, ratios_without
from omniforcing.core.config import ConfigError
from omniforcing.core.console import run_command
from omniforcing.model.options import InferenceOptions


def main() -> None:
    """Parse the command line, measure and print."""
    arguments = parser().parse_args()

    def run() -> None:
        torch.set_num_threads(arguments.threads)
        bench = prepare(arguments)
        about = {
            "config": arguments.config,
            "measured_on": f"CPU, {arguments.threads} threads",
            "parameters": sum(parameter.numel() for parameter in bench.model.parameters()),
            "speed": asdict(bench.options),
        }
        if bench.device.type == "cuda":
            about["measured_on"] = torch.cuda.get_device_name(bench.device)
        report({**about, **measure(bench, arguments.seconds, arguments.rounds)}, arguments.json)

    sys.exit(run_command(run))


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.student",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", choices=list(CASES), default="tiny", help="which student (default: tiny)")
    add("--seconds", type=float, default=60, help="length of the stream (default: 60)")
    add("--json", action="store_true", help="print one JSON object")
    add("--rounds", type=int, default=5, help="runs of each side of a ratio (default: 5)")
    add("--layers", type=int, help="another number of layers, to try a large case")
    add("--heads", type=int, help="another number of heads, to try a large case")
    add("--text", type=int, help="another number of prompt tokens, to try a large case")
    add("--grid", type=int, nargs=2, help="other tokens (H, W) of a video latent")
    add("--device", help="cuda or cpu (default: a GPU if there is one)")
    threads = torch.get_num_threads()
    add("--threads", type=int, default=threads, help="torch threads (default: torch's own)")
    switches = list(asdict(InferenceOptions()))
    add("--on", nargs="+", choices=switches, default=[], help="speed-ups to switch on")
    add("--off", nargs="+", choices=switches, default=[], help="speed-ups to switch off")
    return parser


def prepare(arguments: argparse.Namespace) -> StudentBench:
    """Build the case that the command line names, on its device.

    Raises:
        ConfigError: if there is no such device, or a speed-up needs a GPU.
    """
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device.no-cuda",
            "--device is cuda, but torch finds no CUDA device here; "
            "leave it out, or try --device cpu",
        )
    case = CASES[arguments.config]()
    if arguments.layers:
        case = case.with_layers(arguments.layers)
    if arguments.heads:
        case = case.with_heads(arguments.heads)
    if arguments.text:
        case = replace(case, text_tokens=arguments.text)
    if arguments.grid:
        # A codec decodes its own grid alone.
        case = replace(case, rollout=replace(case.rollout, grid=tuple(arguments.grid)), codec=None)
    switched = dict.fromkeys(arguments.on, True) | dict.fromkeys(arguments.off, False)
    options = replace(InferenceOptions(), **switched)
    options.check(device)
    return StudentBench(case, random_student(case, device), device, options)


def measure(bench: StudentBench, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure a stream of some seconds and the ratios; the module's docstring names the figures."""
    bench.warm_up()
    cost = bench.stream(bench.case.rollout.table.blocks_for_seconds(seconds))
    peak = matmul_peak(bench.device, bench.case.dtype)
    alternatives = ratios(bench, rounds)
    check_equal(bench, alternatives["difference_plain"], "plain")
    operations = block_operations(bench)
    return {
        "fps": cost.fps,
        "ttfc_s": cost.ttfc,
        "block_p50_s": cost.percentile(50),
        "block_p95_s": cost.percentile(95),
        "flatness": cost.flatness,
        "peak_mb_early": max(block.memory for block in cost.steady[:11]) / 2**20,
        "peak_mb_late": max(block.memory for block in cost.blocks[-10:]) / 2**20,
        "matmul_share": operations / cost.median("generate") / peak,
        "split": split(cost, decoded=bench.case.codec is not None),
        **alternatives,
        "ratio_floor": ratio_floor(bench, rounds),
        "ratio_without": ratios_without(bench, rounds),
    }


def split(cost: StreamCost, decoded: bool) -> dict[str, float | None]:
    """Return the median seconds of a block's parts; None for decoding where nothing is decoded."""
    return {
        "steps": cost.median("steps"),
        "refresh": cost.median("refresh"),
        "decode": cost.median("decode") if decoded else None,
    }


def report(figures: dict[str, Any], as_json: bool) -> None:
    """Print the figures as one JSON object, or one per line."""
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        shown = value if not isinstance(value, float) else f"{value:.4g}"
        print(f"{name:<20} {shown}")


if __name__ == "__main__":
    main()
