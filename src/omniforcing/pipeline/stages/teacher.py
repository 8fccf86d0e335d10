"""Stage teacher: train, take or load the bidirectional teacher, a flow-matching model."""

from pathlib import Path

from omniforcing.codec.config import Source
from omniforcing.core.files import atomic_write, read_json
from omniforcing.core.random import step_generator
from omniforcing.distill.sampling import WholeClip
from omniforcing.distill.teacher import Teacher
from omniforcing.model.student import build_core, core_config
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.lora import merged, read_loras
from omniforcing.model.weights.names import generation
from omniforcing.model.weights.student import load_model
from omniforcing.model.weights.tensor_file import WeightsError
from omniforcing.model.weights.writing import write_diffusers
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.samples import log_samples
from omniforcing.pipeline.stages.shared.training import (
    open_shards,
    train_and_publish,
    training_options,
)
from omniforcing.pocket.foundation import KEPT, take_kept
from omniforcing.training.curves import CURVES


def run(stage: Stage) -> None:
    """Make the teacher from its configured source, then log samples of it."""
    config = stage.config.teacher
    if config.source is Source.train:
        train(stage)
    elif config.source is Source.kept:
        with stage.publish() as folder:
            codec = stage.input("codec")
            record = take_kept("teacher", config, stage.config.preset, folder, codec)
        stage.write_curves(KEPT / "teacher.curves.csv")
        stage.write_metrics(record["metrics"])
    else:
        load(stage)
    if stage.is_writer:
        sample(stage)


def load(stage: Stage) -> None:
    """Copy LTX-2's weights bit for bit, from any format that ``open_checkpoint`` reads.

    LoRAs of the config are merged on the way.

    Raises:
        WeightsError: if the weights are unreadable, of another release than the config says, or
            those of a causal student, or a LoRA does not fit them.
    """
    checkpoint = open_checkpoint(Path(str(stage.config.teacher.path)))
    if checkpoint.sinks is not None:
        raise WeightsError(
            "pipeline.causal-teacher",
            f"teacher.path: {checkpoint.source} has sink tokens, so it is a causal student; "
            "name a bidirectional model",
        )
    release, wanted = generation(checkpoint.entries), stage.config.teacher.release
    if release != wanted:
        raise WeightsError(
            "pipeline.other-release",
            f"teacher.path: {checkpoint.source} is of LTX-{release}, and teacher.release says "
            f"{wanted}; take the preset of LTX-{release}, or the weights of LTX-{wanted}",
        )
    checkpoint = merged(checkpoint, read_loras(stage.config.teacher.loras))
    with stage.publish() as folder:
        write_diffusers(checkpoint, folder)
    atomic_write(stage.work / CURVES, "step\n")
    stage.write_curves(stage.work / CURVES)
    stage.write_metrics({"loaded": 1})


def train(stage: Stage) -> None:
    """Train a teacher of the configured size from random weights."""
    config, data = stage.config.teacher, open_shards(stage, "latents")
    seed, unconditional = stage.config.seed, data.text.unconditional
    description = read_json(stage.input("codec") / "codec.json")
    architecture = core_config(config.model, description, unconditional.video.shape[-1])
    recompute = stage.config.trainer.checkpoint_activations
    model = DualStream(build_core(architecture, seed), checkpoint_activations=recompute)
    counts, options = stage.config.clips.latent_counts, training_options(stage.config)
    module = Teacher.from_config(config, model, unconditional, counts, data.grid, seed, options)
    train_and_publish(stage, module, data, config.optim)


def sample(stage: Stage) -> None:
    """Log guided samples of a few held-out captions to MLflow."""
    config, data = stage.config, open_shards(stage, "latents", "heldout")
    captions = sorted({caption for _, _, caption, _ in data.samples()})[:4]
    device = config.trainer.device
    model = load_model(stage.folder, sinks=0, device=device)
    sampler = WholeClip(model, config.clips.latent_counts, data.grid)
    text = data.text.of(captions).to(device)
    generator = step_generator(config.seed, 0, "teacher/samples", device)
    guidance = config.teacher.sampler
    latents = sampler.sample_guided(text, data.text.unconditional, guidance, generator)
    log_samples(stage, latents, captions, stage.input("codec"), data.grid)
