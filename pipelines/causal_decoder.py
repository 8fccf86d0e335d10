"""Optional stage causal_decoder: turn a non-causal video decoder into a causal one."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "causal_decoder", *sys.argv[1:]])
