"""Stage shards: conform clips to one size, length and rate, and pack them into WebDataset tars.

A killed run keeps its finished shards.
"""

from pathlib import Path

from omniforcing.data.rejects import read_flags
from omniforcing.data.shards import plan_shards, publish_shards, write_shards
from omniforcing.data.sources import read_clips
from omniforcing.pipeline.cluster.pool import shard_runner
from omniforcing.pipeline.stage import Stage


def run(stage: Stage) -> None:
    """Conform, pack and publish the clips; rejects are counted in the manifest and the metrics."""
    clips, shards = stage.config.clips, stage.config.shards
    entries = read_clips(stage.input("clips"))
    flags = read_flags(Path(shards.flags)) if shards.flags else None
    plans = plan_shards(entries, clips.form, shards.per_shard, clips.language, flags)
    with shard_runner(stage) as runner:
        write_shards(plans, stage.work, runner)
    with stage.publish() as folder:
        reject_near = shards.near_duplicates == "reject"
        manifest = publish_shards(plans, stage.work, folder, clips.max_reject_share, reject_near)
    counts = {"rejected": len(manifest["rejects"]), **manifest["loudness"]}
    stage.write_metrics({**manifest["clips"], **counts})
