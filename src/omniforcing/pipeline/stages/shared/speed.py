"""Speed of the student, streamed from an artifact, against the teacher's offline sampler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from omniforcing.core.files import atomic_dir, read_json
from omniforcing.core.latents import Latents
from omniforcing.evaluation.samplers import SamplerFactory
from omniforcing.evaluation.speed import against_teacher, measure_offline, measure_stream
from omniforcing.pipeline.config import Config
from omniforcing.streaming.artifact import StreamSettings, write_artifact
from omniforcing.streaming.engine import Engine


def against_the_teacher(
    config: Config,
    factory: SamplerFactory,
    folders: Mapping[str, Path],
    codec: Path,
    work: Path,
    prompt: str,
) -> dict[str, Any]:
    """Time the student's stream and the teacher's sampler on the same prompt and length.

    Decoding is included.

    Args:
        config: the whole configuration.
        factory: samples the teacher.
        folders: output folders of the models, by stage.
        codec: folder of the codec, copied into the artifact.
        work: folder to write the artifact to.
        prompt: prompt of both.

    Returns:
        The figures of ``against_teacher``, and ``measured_on`` as text.
    """
    seconds = config.clips.seconds
    settings = StreamSettings.from_config(
        config.preset, config.student, config.clips.latent_counts, read_json(codec / "codec.json")
    )
    with atomic_dir(work) as folder:
        write_artifact(folder, folders["self_forcing"], codec, settings, {})
    engine = Engine(work, factory.device)
    stream = measure_stream(lambda: (chunk.timing for chunk in engine.stream(prompt, seconds)))
    draw = factory.draw("teacher", folders["teacher"], seconds)
    text = factory.text.of([prompt]).map(lambda x: x.to(factory.device))
    generator = torch.Generator(factory.device)

    def sample() -> Latents:
        drawn = draw(text, generator.manual_seed(0))
        drawn.video.cpu()  # waits for the device
        return drawn

    teacher, latents = measure_offline(sample, lambda drawn: list(factory.decoded(drawn)))
    steps, threads = len(config.student.sigmas), torch.get_num_threads()
    device = torch.cuda.get_device_name() if factory.device == "cuda" else f"CPU, {threads} threads"
    measured = (
        f"{device}; {settings.width}x{settings.height}, {seconds} s; "
        f"student {steps} steps a block, window {settings.window}, "
        "generating and decoding on a thread each; "
        f"teacher {config.teacher.sampler.steps} guided steps; decoding included"
    )
    return {**against_teacher(stream, teacher, latents), "measured_on": measured}
