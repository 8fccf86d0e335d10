"""Stage II: make the student block-causal by ODE regression, with sinks (paper section 3.3)."""

from omniforcing.distill.causal_ode import CausalOde
from omniforcing.model.attention import Masked
from omniforcing.model.student import load_model, positions_for
from omniforcing.ops.stage import Stage, stage_main
from omniforcing.ops.train_stage import open_shards, train_and_publish


def run(stage: Stage) -> None:
    """The student starts from Stage I's weights (default) or the teacher's, and fresh sink tokens."""
    config, data = stage.config, open_shards(stage, "trajectories")
    student = load_model(
        stage.input(config.causal_ode.init.value),
        config.student.sinks,
        stabiliser=config.student.stabiliser,
        fresh=True,
        meta=config.cluster.sharded,
    )
    positions = positions_for(student, config.latent_counts, data.grid, sinks=True)
    view = Masked(positions, config.table, config.horizon + 1, config.student.window, config.horizon)
    module = CausalOde(student, config.causal_ode, config.student.sigmas, config.table, view, config.seed)
    train_and_publish(stage, module, data, config.causal_ode.optim)


if __name__ == "__main__":
    stage_main("causal_ode", run, trains=lambda config: config.causal_ode.optim.steps > 0)
