"""Measure this project on a GPU: parity, the 19B student, training, preset small, decoding, pocket.

`python -m benchmarks.gpu --json out.json` takes nine minutes on one card. It prints a row as soon
as it is measured (part, name, state, figures, reason), then one Markdown table per part with a
column per figure; units stand in the names of the figures. Given the same file again, it goes on
with what is missing. `--device cpu --small` tries every part at tiny size on any machine.
docs/how-to/gpu-check.md has the protocol and the states of a row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

LONGEST = 1440.0  # minutes
SOURCES = str(Path(__file__).parents[2] / "src")
if SOURCES not in sys.path:  # a checkout that is not installed
    sys.path.insert(0, SOURCES)
    paths = [SOURCES, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    from benchmarks.gpu.child import PARTS

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, help="time for all parts (default: 9, with --small 3)")
    names = list(PARTS)
    add("--parts", nargs="+", choices=names, default=names, help="these parts alone, in this order")
    add(
        "--json", type=Path, metavar="FILE", help="keep the rows here, and go on from what it holds"
    )
    add("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    add("--small", action="store_true", help="tiny sizes: tries every part, in three minutes")
    add("--commit", help="the commit to state where the checkout has no git")
    add("--child", nargs=3, help=argparse.SUPPRESS)
    add("--done", default="[]", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Parse the command line and measure; with ``--child`` serve one part to the parent process."""
    if find_spec("torch") is None:
        sys.exit(
            "error: torch is not installed for this Python; "
            "pip install torch transformers safetensors numpy diffusers"
        )
    from benchmarks.gpu.child import serve
    from benchmarks.gpu.settings import PartSettings
    from omniforcing.core.console import run_command

    options = parser()
    arguments = options.parse_args()
    if arguments.child:
        part, module, parent = arguments.child
        settings = PartSettings.from_json(sys.stdin.read())
        serve(part, module, int(parent), settings, set(json.loads(arguments.done)))
        return
    if arguments.minutes is None:
        arguments.minutes = 3.0 if arguments.small else 9.0
    if not 0 < arguments.minutes <= LONGEST:
        options.error(
            f"--minutes is {arguments.minutes:g}; give a number above 0, at most {LONGEST:g}"
        )
    measured = False

    def run() -> None:
        nonlocal measured
        measured = measure(arguments)

    code = run_command(run)
    sys.exit(code or (0 if measured else 1))


def measure(arguments: argparse.Namespace) -> bool:
    """Run the parts and print the tables; return whether any part gave a figure."""
    from benchmarks.gpu.child import PARTS
    from benchmarks.gpu.machine_info import cuda_problem, gpu_clocks, run_identity
    from benchmarks.gpu.rows import FAILED, Results, Row, markdown
    from benchmarks.gpu.runner import run

    device, small = arguments.device, arguments.small
    results = Results(run_identity(device, small, arguments.commit), arguments.json)
    problem = cuda_problem() if device == "cuda" else None
    if problem is None:
        results.note(clocks_before=gpu_clocks(device))
        run(results, arguments.parts, arguments.minutes, device, small)
        results.note(clocks_after=gpu_clocks(device))
    else:
        for name in arguments.parts:
            results.add(Row(name, name, FAILED, why=problem))
    size = ", at tiny size" if small else ""
    print("\n" + markdown(results, {name: part.title + size for name, part in PARTS.items()}))
    return results.measured


if __name__ == "__main__":
    main()
