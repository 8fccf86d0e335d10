"""Stage codec: video VAE, audio VAE, vocoder and text encoder."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "codec", *sys.argv[1:]])
