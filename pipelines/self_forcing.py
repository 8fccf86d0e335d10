"""Stage III: joint self-forcing DMD on the student's own rollout (paper section 3.4)."""

from omniforcing.config import ScoreMask
from omniforcing.distill.sampling import full_view, rollout_config
from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.model.attention import Masked, View
from omniforcing.model.student import load_model, positions_for
from omniforcing.ops.stage import Stage, stage_main
from omniforcing.ops.train_stage import open_shards, train_and_publish


def run(stage: Stage) -> None:
    """The student starts from Stage II (default) or, with fresh sink tokens, from Stage I; the critic from the teacher."""
    config, data = stage.config, open_shards(stage, "latents")
    student = load_model(
        stage.input(config.self_forcing.init.value),
        config.student.sinks,
        stabiliser=config.student.stabiliser,
        fresh=True,
        meta=config.cluster.sharded,
    )
    teacher, critic = (load_model(stage.input("teacher"), sinks=0, meta=config.cluster.sharded) for _ in range(2))
    view: View = full_view(teacher, config.latent_counts, data.grid)
    if config.self_forcing.scores is ScoreMask.causal:
        positions = positions_for(teacher, config.latent_counts, data.grid, sinks=True)
        view = Masked(positions, config.table, config.horizon + 1, None, config.horizon)
    module = SelfForcing(
        student,
        teacher,
        critic,
        config=config.self_forcing,
        view=view,
        unconditional=data.text.unconditional,
        rollout=rollout_config(config, data.grid),
        blocks=config.horizon + 1,
        captions=data.text.features,
        seed=config.seed,
    )
    train_and_publish(stage, module, data, config.self_forcing.optim)


if __name__ == "__main__":
    stage_main("self_forcing", run, trains=lambda config: config.self_forcing.optim.steps > 0)
