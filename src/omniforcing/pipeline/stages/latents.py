"""Stage latents: encode clips into normalised latents, and captions into text features.

A killed run keeps its finished shards.
"""

from omniforcing.data.encode import encode_shards
from omniforcing.pipeline.cluster.pool import shard_runner, worker_device
from omniforcing.pipeline.stage import Stage


def run(stage: Stage) -> None:
    """Encode the shards, check the counts and publish the latents.

    Clips whose caption the text encoder would cut are left out and counted in the manifest.
    """
    codec, device = stage.input("codec"), worker_device(stage.config)
    with stage.publish() as folder, shard_runner(stage) as runner:
        counts = encode_shards(
            stage.input("shards"),
            folder,
            stage.work,
            codec,
            device,
            stage.config.latents.batch,
            stage.config.clips.max_reject_share,
            runner,
        )
    stage.write_metrics(counts)
