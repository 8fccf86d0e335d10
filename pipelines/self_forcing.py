"""Stage III: joint self-forcing DMD on the student's own rollout (paper section 3.4)."""

from omniforcing.pipeline.stage import Stage, stage_main


def run(stage: Stage) -> None:
    """The student starts from Stage II (default) or, with fresh sink tokens, from Stage I; the critic from the teacher."""
    from omniforcing.distill.self_forcing import SelfForcing
    from omniforcing.pipeline.stages.training import (
        open_shards,
        open_student,
        open_teachers,
        train_and_publish,
        training_options,
    )

    config, data = stage.config, open_shards(stage, "latents")
    models = [open_student(stage, config.self_forcing.init.value), *open_teachers(stage, 2)]
    module = SelfForcing.from_config(
        config.self_forcing,
        config.student,
        models,
        data.text.unconditional,
        data.text.features,
        config.clips.latent_counts,
        data.grid,
        config.seed,
        training_options(config),
    )
    train_and_publish(stage, module, data, config.self_forcing.optim)


if __name__ == "__main__":
    stage_main("self_forcing", run, trains=lambda config: config.self_forcing.optim.steps > 0)
