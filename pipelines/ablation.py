"""Measure what each distillation stage contributes.

Run `python pipelines/ablation.py [--preset NAME] [variants ...]`.
"""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["ablation", *sys.argv[1:]])
