"""What the four trained transformer stages do alike: open the data, fit, publish the EMA, summarise the curves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omniforcing.config import OptimiserConfig
from omniforcing.data.tensors import TensorShards
from omniforcing.distill.common import StageModule
from omniforcing.latents import Batch, Latents
from omniforcing.model.student import save_model
from omniforcing.ops.stage import Stage
from omniforcing.ops.training import CURVES, fit


def open_shards(stage: Stage, folder: str, split: str = "train") -> TensorShards:
    """Latents or trajectories of the preset's clip length."""
    return TensorShards(stage.input(folder), split, stage.config.latent_counts)


def train_and_publish(stage: Stage, module: StageModule, data: TensorShards, optim: OptimiserConfig) -> None:
    """Fit a module on shuffled batches, publish its EMA weights, and record curves and largest gradient norms."""
    config = stage.config
    every = min(config.trainer.checkpoint_every, optim.steps)

    def batches(epoch: int) -> Iterator[Batch]:
        return data.batches(optim.batch, every, config.seed, epoch)

    fit(
        module,
        batches,
        steps=optim.steps,
        work=stage.work,
        trainer=config.trainer,
        log=stage.log_metrics,
        name=stage.name,
    )
    publish_model(stage, module)
    stage.curves(stage.work / CURVES)
    stage.metrics({"steps": optim.steps, **module.summary()})


def publish_model(stage: Stage, module: StageModule) -> None:
    """Write the EMA weights as the stage's output."""
    with stage.publish() as folder:
        save_model(module.ema.model, folder)


def log_samples(stage: Stage, latents: Latents, captions: list[str], codec: Path, grid: tuple[int, int]) -> None:
    """Decode a few samples and log them to MLflow as mp4 with their spectrogram."""
    from omniforcing.codec.codec import Codec
    from omniforcing.data.media import write_mp4

    media = Codec.load(codec).decode(latents, grid)
    folder = stage.work / "samples"
    folder.mkdir(exist_ok=True)
    for index, caption in enumerate(captions):
        clip = media.map(lambda x, i=index: x[i].numpy())
        write_mp4(folder / f"{index}_{caption.replace(' ', '_')[:60]}.mp4", clip)
    stage.log_artifact(folder, "samples")
