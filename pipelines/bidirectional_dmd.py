"""Stage I: distil the teacher into a few-step student, still bidirectional (paper section 3.2)."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("bidirectional_dmd")
