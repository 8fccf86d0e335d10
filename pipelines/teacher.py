"""Stage teacher: train the bidirectional teacher by flow matching, take the kept one, or load LTX-2's."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("teacher")
