"""Stage III: joint self-forcing DMD on the student's own rollout (paper section 3.4)."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "self_forcing", *sys.argv[1:]])
