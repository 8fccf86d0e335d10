"""Stage III: joint self-forcing DMD on the student's own rollout (paper section 3.4)."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("self_forcing")
