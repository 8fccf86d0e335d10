"""Stage export: write the artifact, stream from it once, log it as an MLflow model."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "export", *sys.argv[1:]])
