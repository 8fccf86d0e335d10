"""Stage latents: every clip as normalised latents, every caption as text features. A killed run keeps its finished shards."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("latents")
