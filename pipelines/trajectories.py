"""Stage trajectories: the ODE pairs that Stage II learns from."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "trajectories", *sys.argv[1:]])
