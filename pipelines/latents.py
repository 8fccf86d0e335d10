"""Stage latents: every clip as normalised latents, every caption as text features."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "latents", *sys.argv[1:]])
