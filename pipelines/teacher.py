"""Stage teacher: train the bidirectional teacher by flow matching, take the kept one, or load LTX-2's."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "teacher", *sys.argv[1:]])
