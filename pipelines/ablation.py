"""Measure what each distillation stage contributes."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["ablation", *sys.argv[1:]])
