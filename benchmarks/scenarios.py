"""Write scenarios of the pocket world for `omniforcing play`: to another ball, and back.

`python -m benchmarks.scenarios --count 16 > scenarios.jsonl` writes a stream a line: a caption, the
same with another colour for the second third, and the first again. With `--rewrite` each change
also rewrites what the student remembers.
"""

import argparse
import json
from dataclasses import asdict
from itertools import islice, permutations, product

from omniforcing.pipeline.experiments.scenario import Scenario, Update
from omniforcing.pocket.synthetic import COLOURS, MODES


def scenarios(count: int, third: int, rewrite: bool) -> list[Scenario]:
    """Make ``count`` scenarios, each three times ``third`` seconds long, of distinct captions."""
    pairs = product(MODES.values(), permutations(COLOURS, 2))
    made = []
    for seed, (mode, colours) in enumerate(islice(pairs, count)):
        first, other = (f"a {colour} ball bounces {mode.caption}" for colour in colours)
        updates = (Update(third, other, rewrite), Update(2 * third, first, rewrite))
        made.append(Scenario(f"{seed:03d}", first, 3 * third, seed, updates))
    return made


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=16, help="streams, at most 36 (default: 16)")
    parser.add_argument("--third", type=int, default=4, help="seconds per prompt (default: 4)")
    parser.add_argument("--rewrite", action="store_true", help="rewrite the student's memory too")
    arguments = parser.parse_args()
    for scenario in scenarios(arguments.count, arguments.third, arguments.rewrite):
        print(json.dumps(asdict(scenario)))


if __name__ == "__main__":
    main()
