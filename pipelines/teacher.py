"""Stage teacher: train the bidirectional teacher by flow matching, or take or load one."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "teacher", *sys.argv[1:]])
