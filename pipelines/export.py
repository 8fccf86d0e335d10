"""Stage export: the artifact that streams on its own, a first stream from it, and the same as an MLflow model."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("export")
