"""Stage teacher: train the bidirectional teacher by flow matching, or take one.

One can be taken from the kept foundation or loaded from LTX-2's weights.
"""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "teacher", *sys.argv[1:]])
