"""Stage trajectories: integrate the ODE trajectories that Stage II learns from (paper section 3.3).

A killed run keeps its finished shards.
"""

from omniforcing.core.files import folder_digest
from omniforcing.distill.config import OdeSource
from omniforcing.distill.trajectories import Recipe, write_trajectories
from omniforcing.pipeline.cluster.pool import shard_runner, worker_device
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.training import open_shards


def run(stage: Stage) -> None:
    """Integrate the Stage I student (default) or the guided teacher on the training captions.

    States at the student's sigmas are kept.
    """
    config, data = stage.config, open_shards(stage, "latents")
    source = stage.input(config.trajectories.source.value)
    recipe = Recipe(
        config=config.trajectories,
        sigmas=tuple(config.student.sigmas),
        sampler=config.teacher.sampler if config.trajectories.source is OdeSource.teacher else None,
        counts=config.clips.latent_counts,
        source=folder_digest(source),
        seed=config.seed,
    )
    with stage.publish() as folder, shard_runner(stage) as runner:
        device = worker_device(config)
        counts = write_trajectories(recipe, source, device, data, stage.work, folder, runner)
    stage.write_metrics(counts)
