"""Stage clips: synthetic clips, or a folder of videos with captions, listed in ``clips.jsonl``."""

from omniforcing.data.sources import write_clips
from omniforcing.pipeline.stage import Stage


def run(stage: Stage) -> None:
    """Write and publish the clips; rejects are counted in the manifest and the metrics."""
    with stage.publish() as folder:
        found = write_clips(stage.config.clips, stage.config.seed, folder)
    stage.metrics({**found["clips"], "rejected": len(found["rejects"])})
