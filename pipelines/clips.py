"""Stage clips: synthetic clips, or a folder of videos with captions, listed in ``clips.jsonl``."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "clips", *sys.argv[1:]])
