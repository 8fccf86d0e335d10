"""Stage trajectories: the ODE pairs that Stage II learns from. A killed run keeps its finished shards."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("trajectories")
