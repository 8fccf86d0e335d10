"""Stage III: joint self-forcing DMD on the student's own rollout (paper section 3.4)."""

from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.training import (
    open_roles,
    open_shards,
    train_and_publish,
    training_options,
)


def run(stage: Stage) -> None:
    """Train the student from Stage II's weights (default) or Stage I's.

    A student from Stage I gets new sink tokens. The critic starts from the teacher's weights.
    """
    config, data = stage.config, open_shards(stage, "latents")
    models = open_roles(stage, config.self_forcing, config.self_forcing.init.value)
    module = SelfForcing.from_config(
        config.self_forcing,
        config.student,
        models,
        data.text.unconditional,
        data.text,
        config.clips.latent_counts,
        data.grid,
        config.seed,
        training_options(config),
    )
    train_and_publish(stage, module, data, config.self_forcing.optim)
