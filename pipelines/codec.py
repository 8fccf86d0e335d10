"""Stage codec: video VAE, audio VAE, vocoder and text encoder."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("codec")
