"""Stage export: the artifact that streams on its own, a first stream from it, and the same as an MLflow model."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "export", *sys.argv[1:]])
