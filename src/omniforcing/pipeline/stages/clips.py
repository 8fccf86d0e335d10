"""Stage clips: list synthetic clips, or a folder of videos with captions, in ``clips.jsonl``."""

from omniforcing.data.sources import write_clips
from omniforcing.pipeline.cluster.local import LocalPool, process_count
from omniforcing.pipeline.stage import Stage


def run(stage: Stage) -> None:
    """Write and publish the clips; rejects are counted in the manifest and the metrics."""
    config = stage.config
    with stage.publish() as folder:
        run = LocalPool(process_count(config.trainer), "not all clips were made")
        manifest = write_clips(config.clips, config.seed, folder, run)
    stage.write_metrics({**manifest["clips"], "rejected": len(manifest["rejects"])})
