"""Optional stage causal_decoder: make a causal video decoder, which streams exactly, of a non-causal one."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("causal_decoder")
