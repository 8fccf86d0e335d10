"""Stage I: distil the teacher into a few-step student, still bidirectional (paper section 3.2)."""

from omniforcing.distill.bidirectional_dmd import BidirectionalDmd
from omniforcing.distill.sampling import full_view
from omniforcing.model.student import load_model
from omniforcing.ops.stage import Stage, stage_main
from omniforcing.ops.train_stage import open_shards, train_and_publish


def run(stage: Stage) -> None:
    """Student, teacher and critic all start from the teacher's weights."""
    config, data = stage.config, open_shards(stage, "latents")
    student, teacher, critic = (load_model(stage.input("teacher"), sinks=0, meta=config.cluster.sharded) for _ in range(3))
    module = BidirectionalDmd(
        student,
        teacher,
        critic,
        config=config.bidirectional_dmd,
        view=full_view(teacher, config.latent_counts, data.grid),
        unconditional=data.text.unconditional,
        sigmas=config.student.sigmas,
        counts=config.latent_counts,
        grid=data.grid,
        seed=config.seed,
    )
    train_and_publish(stage, module, data, config.bidirectional_dmd.optim)


if __name__ == "__main__":
    stage_main("bidirectional_dmd", run, trains=lambda config: config.bidirectional_dmd.optim.steps > 0)
