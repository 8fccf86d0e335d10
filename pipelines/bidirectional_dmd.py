"""Stage I: distil the teacher into a few-step student, still bidirectional (paper section 3.2)."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "bidirectional_dmd", *sys.argv[1:]])
