"""Stage evaluate: measure every model on the same held-out captions and seeds, and write a page."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "evaluate", *sys.argv[1:]])
