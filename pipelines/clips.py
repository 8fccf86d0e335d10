"""Stage clips: synthetic clips, or a folder of videos with captions, listed in ``clips.jsonl``."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("clips")
