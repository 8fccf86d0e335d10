"""Stage clips: list synthetic clips, or a folder of videos with captions, in ``clips.jsonl``."""

from omniforcing.data.sources import write_clips
from omniforcing.pipeline.stage import Stage


def run(stage: Stage) -> None:
    """Write and publish the clips; rejects are counted in the manifest and the metrics."""
    with stage.publish() as folder:
        manifest = write_clips(stage.config.clips, stage.config.seed, folder)
    stage.write_metrics({**manifest["clips"], "rejected": len(manifest["rejects"])})
