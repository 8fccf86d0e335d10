"""Stage I: distil the teacher into a few-step student, still bidirectional (paper section 3.2)."""

from omniforcing.distill.bidirectional_dmd import BidirectionalDmd
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.training import (
    open_roles,
    open_shards,
    train_and_publish,
    training_options,
)


def run(stage: Stage) -> None:
    """Train the student; student, teacher and critic start from the teacher's weights."""
    config, data = stage.config, open_shards(stage, "latents")
    module = BidirectionalDmd.from_config(
        config.bidirectional_dmd,
        config.student.sigmas,
        open_roles(stage, config.bidirectional_dmd),
        data.text.unconditional,
        config.clips.latent_counts,
        data.grid,
        config.seed,
        training_options(config),
    )
    train_and_publish(stage, module, data, config.bidirectional_dmd.optim)
