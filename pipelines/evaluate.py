"""Stage evaluate: every model on the same held-out captions and seeds, measured and side by side on a page."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("evaluate")
