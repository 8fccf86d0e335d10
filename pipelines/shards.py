"""Stage shards: clips conformed to one size, length and rate, in WebDataset tars. A killed run keeps its finished shards."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("shards")
