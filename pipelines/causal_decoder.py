"""Optional stage causal_decoder: make a causal video decoder, which streams exactly, of a non-causal one."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "causal_decoder", *sys.argv[1:]])
