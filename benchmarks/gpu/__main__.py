"""Measure this project on a GPU: parity, the 19B student, training, preset small, decoding, the pocket student.

``python -m benchmarks.gpu --json out.json`` takes nine minutes on one card and prints a row as soon as it is measured, then
Markdown tables. Given the same file again it goes on with what is missing. ``--device cpu --small`` tries every part at tiny
size anywhere. docs/how-to/gpu-check.md has the protocol.
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
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (SOURCES, os.environ.get("PYTHONPATH", "")))
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from benchmarks.gpu.part import PARTS

    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--minutes", type=float, help="time for all parts together (default: 9, with --small 3)"
    )
    made.add_argument(
        "--parts",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        help="these parts alone, in this order",
    )
    made.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also keep the rows in this file, and go on from what it holds",
    )
    made.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="where to compute (default: cuda)"
    )
    made.add_argument(
        "--small", action="store_true", help="tiny sizes: whether every part runs, in three minutes"
    )
    made.add_argument("--commit", help="the commit to state where the checkout has no git")
    made.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    made.add_argument("--done", default="[]", help=argparse.SUPPRESS)
    return made


def main() -> None:
    """Parse the command line and measure."""
    from benchmarks.gpu.part import PARTS, serve
    from benchmarks.gpu.rows import FAILED, Results, Row, markdown
    from benchmarks.gpu.runner import run
    from benchmarks.gpu.setup import Setup, clocks, cuda_problem, run_identity
    from omniforcing.core.console import run_command

    if find_spec("torch") is None:
        sys.exit(
            "error: torch is not installed for this Python; pip install torch transformers safetensors numpy diffusers"
        )
    options = parser()
    arguments = options.parse_args()
    if arguments.child:
        part, module, parent = arguments.child
        serve(
            part, module, int(parent), Setup.read(sys.stdin.read()), set(json.loads(arguments.done))
        )
        return
    minutes = (
        arguments.minutes if arguments.minutes is not None else 3.0 if arguments.small else 9.0
    )
    if not 0 < minutes <= LONGEST:
        options.error(f"--minutes is {minutes:g}; give a number above 0, at most {LONGEST:g}")
    code = 0

    def measure() -> None:
        nonlocal code
        results = Results(
            run_identity(arguments.device, arguments.small, arguments.commit), arguments.json
        )
        problem = cuda_problem() if arguments.device == "cuda" else None
        if problem is None:
            results.note(clocks_before=clocks(arguments.device))
            run(results, arguments.parts, minutes, arguments.device, arguments.small)
            results.note(clocks_after=clocks(arguments.device))
        else:
            for part in arguments.parts:
                results.add(Row(part, part, FAILED, why=problem))
        size = ", at tiny size" if arguments.small else ""
        print("\n" + markdown(results, {name: PARTS[name][2] + size for name in PARTS}))
        code = 0 if results.measured else 1

    ended = run_command(measure)
    sys.exit(ended or code)


if __name__ == "__main__":
    main()
