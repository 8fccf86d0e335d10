"""Stage export: write the artifact, stream a first clip from it, and log it as an MLflow model."""

import shutil
import tempfile
from importlib.metadata import requires, version
from pathlib import Path

import numpy as np
import torch
from packaging.requirements import Requirement

import omniforcing
from omniforcing.core.files import read_json, write_manifest
from omniforcing.core.pair import Pair
from omniforcing.evaluation.plots import draw_media
from omniforcing.evaluation.summary import CLIP_TABLE
from omniforcing.media.mel import resample
from omniforcing.model.weights.lora import ADAPTER_FILE, read_lora
from omniforcing.pipeline.stage import Stage
from omniforcing.pocket.observe import observe
from omniforcing.streaming.artifact import Artifact, StreamSettings, write_artifact
from omniforcing.streaming.command import figures, write_stream
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.publishing.card import CARD, SAMPLE, CardFacts
from omniforcing.tracking.description import NOTE, page_text
from omniforcing.tracking.registry import EVALUATION, Registry
from omniforcing.tracking.store import UPLOAD, answering, tracking_uri

PICTURE = "sample.png"  # frames of the sample over its spectrogram


def stream_sample(
    artifact: Artifact, prompt: str, seconds: float, seed: int, device: str
) -> dict[str, object]:
    """Stream a clip and add it to the artifact as ``sample.mp4`` and ``sample.png``.

    The picture shows frames over the spectrogram.

    Args:
        artifact: the artifact to stream from and to add to.
        prompt: prompt of the clip.
        seconds: length of the clip.
        seed: seed of the noise.
        device: torch device.

    Returns:
        Figures of the stream, such as its speed.
    """
    chunks = list(Engine(artifact, device).stream(prompt, seconds, seed))
    speed = write_stream(chunks, artifact.folder / SAMPLE, artifact.settings)
    sound = torch.from_numpy(np.concatenate([c.samples for c in chunks], 1))
    media = Pair(
        np.concatenate([c.frames for c in chunks]),
        resample(sound, artifact.settings.sample_rate).numpy(),
    )
    draw_media(artifact.folder / PICTURE, media, observe(media, prompt))
    write_manifest(artifact.folder)
    return figures(speed, artifact.settings, device)


def installed_requirements() -> list[str]:
    """Libraries of the base package at their installed versions, as ``name==version``.

    A server of the model needs no extra, so extras are left out.
    """
    needed = [Requirement(line) for line in requires("omniforcing") or []]
    names = [requirement.name for requirement in needed if requirement.marker is None]
    # Local versions such as 2.9.0+cpu are not on the package index.
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def log_model(stage: Stage) -> None:
    """Log the published artifact to the stage's MLflow run as a pyfunc model with its card."""
    import mlflow

    from omniforcing.serving import pyfunc

    uri = tracking_uri(stage.root)
    with (
        tempfile.TemporaryDirectory() as folder,
        answering(uri, UPLOAD),
        mlflow.start_run(run_id=stage.run_id),
    ):
        package = Path(folder, "omniforcing")
        shutil.copytree(
            Path(omniforcing.__file__).parent,
            package,
            ignore=shutil.ignore_patterns("assets", "__pycache__"),
        )
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=pyfunc.__file__,
            artifacts={"artifact": str(stage.folder)},
            code_paths=[str(package)],
            signature=pyfunc.SIGNATURE,
            input_example=pyfunc.INPUT_EXAMPLE,
            pip_requirements=installed_requirements(),
        )
        registry = Registry(uri, mlflow.MlflowClient(uri))
        card = (stage.folder / CARD).read_text(encoding="utf-8")
        text = page_text(card, registry.client.get_run(stage.run_id), SAMPLE, PICTURE)
        registry.client.set_logged_model_tags(logged.model_id, {NOTE: text})
        if stage.config.export.registered_model:
            registry.register(stage.config.export.registered_model, stage.run_id)


def log_adapter(stage: Stage, adapter: Path) -> None:
    """Log a student's adapter to the stage's MLflow run as a model of its diffusers flavour.

    Args:
        stage: the running stage.
        adapter: the adapter's file, in diffusers' names.
    """
    import mlflow
    import mlflow.diffusers

    # MLflow would look a name that is no path up on the Hub.
    base = stage.config.teacher.path or f"data/{stage.config.preset}/teacher"
    place = base if Path(base).is_absolute() else f"./{base.removeprefix('./')}"
    uri = tracking_uri(stage.root)
    with answering(uri, UPLOAD), mlflow.start_run(run_id=stage.run_id):
        mlflow.diffusers.log_model(
            adapter_path=str(adapter),
            base_model=place,
            name="adapter",
            metadata=read_lora(adapter).facts,
            pip_requirements=[*installed_requirements(), f"peft=={version('peft')}"],
        )


def run(stage: Stage) -> None:
    """Write the artifact, stream a sample from it, publish it and log it to MLflow."""
    config, codec = stage.config, stage.input("codec")
    settings = StreamSettings.from_config(
        config.preset,
        config.student,
        config.clips.latent_counts,
        read_json(codec / "codec.json"),
    )
    metrics = read_json(stage.input("evaluate") / "metrics.json")
    with stage.publish() as folder:
        student, precision = stage.input("self_forcing"), config.export.precision
        facts = CardFacts(
            config.export.licence,
            config.export.licence_link,
            config.export.base_model,
            sample=config.export.prompt,
        )
        artifact = write_artifact(folder, student, codec, settings, metrics, precision, facts)
        sample = stream_sample(
            artifact,
            config.export.prompt,
            config.export.seconds,
            config.seed,
            config.trainer.device,
        )
    stage.write_metrics(sample | {"files": len(read_json(stage.folder / "manifest.json")["files"])})
    for name in (SAMPLE, PICTURE, CARD):
        stage.log_artifact(stage.folder / name)
    for name in ("metrics.json", CLIP_TABLE):
        stage.log_artifact(stage.input("evaluate") / name, EVALUATION)
    log_model(stage)
    adapter = stage.input("self_forcing") / ADAPTER_FILE
    if adapter.is_file():
        log_adapter(stage, adapter)
