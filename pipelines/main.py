"""Run the pipeline for one preset: `python pipelines/main.py [--preset NAME] [stages ...]`."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
