"""Stage shards: clips conformed to one size, length and rate, in WebDataset tars."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "shards", *sys.argv[1:]])
