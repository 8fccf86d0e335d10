"""The pocket student through the engine, from a prompt's words to frames and samples.

With ``data/pocket/artifact``, where the pipeline has run; else the kept foundation's teacher stands in,
driven as a student: the same network without sinks, so its times are the student's and its pictures
mean nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.gpu.networks import kept
from benchmarks.gpu.rows import Figures, Measurement
from benchmarks.gpu.setup import Setup, preset
from omniforcing.core.config import project_root
from omniforcing.core.files import atomic_dir, read_json
from omniforcing.evaluation.speed import measure_stream
from omniforcing.model.options import InferenceOptions
from omniforcing.streaming.artifact import StreamSettings, write_artifact
from omniforcing.streaming.engine import Engine

PROMPT = "a red ball bounces high on the floor"


def measurements(setup: Setup) -> list[Measurement]:
    """The usual stream, and with compiled layers and CUDA graphs."""
    return [
        Measurement(
            "eager", partial(stream, setup, InferenceOptions()), "stream the pocket student"
        ),
        Measurement(
            "compiled",
            partial(stream, setup, InferenceOptions(compiled=True)),
            "stream it with CUDA graphs",
            cuda=True,
            limit=120,
        ),
    ]


def stream(setup: Setup, speed: InferenceOptions) -> Figures:
    """A stream of some seconds, decoded; medians of three after one that warms up."""
    made = project_root() / "data" / "pocket" / "artifact"
    with tempfile.TemporaryDirectory() as folder:
        artifact = made if made.is_dir() else stand_in(Path(folder, "artifact"))
        engine = Engine(artifact, setup.device, speed)
        seconds = 2.0 if setup.small else 12.0
        found = measure_stream(
            lambda: (chunk.timing for chunk in engine.stream(PROMPT, seconds)),
            1 if setup.small else 3,
        )
    shown = ("ttfc_s", "real_time_factor", "fps", "block_p50_s", "block_p95_s", "stalls")
    weights = "artifact" if made.is_dir() else "kept teacher as stand-in"
    return {**{name: found[name] for name in shown}, "weights": weights}


def stand_in(folder: Path) -> Path:
    """An artifact of the kept codec and the kept teacher's weights."""
    codec = kept("codec")
    config = preset("pocket")
    settings = StreamSettings.from_config(
        config.preset, config.student, config.clips.latent_counts, read_json(codec / "codec.json")
    )
    settings = replace(settings, sinks=0)
    with atomic_dir(folder) as temporary:
        write_artifact(temporary, kept("teacher"), codec, settings, {})
    return folder
