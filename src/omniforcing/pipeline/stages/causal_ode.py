"""Stage II: make the student block-causal by ODE regression, with sinks (paper section 3.3)."""

from omniforcing.distill.causal_ode import CausalOde
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.training import (
    open_causal_student,
    open_shards,
    train_and_publish,
    training_options,
)


def run(stage: Stage) -> None:
    """Train the student from Stage I's weights (default) or the teacher's, with new sink tokens."""
    config, data = stage.config, open_shards(stage, "trajectories")
    module = CausalOde.from_config(
        config.causal_ode,
        config.student,
        open_causal_student(stage, config.causal_ode),
        config.clips.latent_counts,
        data.grid,
        config.seed,
        training_options(config),
    )
    train_and_publish(stage, module, data, config.causal_ode.optim)
