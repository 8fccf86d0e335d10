"""The pocket student through the engine, from a prompt's words to frames and samples.

It streams `data/pocket/artifact` where the pipeline has run. Elsewhere the teacher of the kept
foundation is driven as a student: the same network without sinks, so times are the student's, and
pictures mean nothing. Figures are medians of three streams, after one that warms up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.gpu.networks import kept_folder
from benchmarks.gpu.rows import Figures, Measurement
from benchmarks.gpu.settings import PartSettings
from benchmarks.presets import load_preset
from omniforcing.core.config import project_root
from omniforcing.core.files import atomic_dir, read_json
from omniforcing.evaluation.speed import BlockTiming, measure_stream
from omniforcing.model.options import InferenceOptions
from omniforcing.streaming.artifact import StreamSettings, write_artifact
from omniforcing.streaming.engine import Engine

PROMPT = "a red ball bounces high on the floor"
SHOWN = ("ttfc_s", "real_time_factor", "fps", "block_p50_s", "block_p95_s", "stalls")


def measurements(settings: PartSettings) -> list[Measurement]:
    """List the usual stream, and one with compiled layers and CUDA graphs."""
    usual = partial(stream, settings, InferenceOptions())
    compiled = partial(stream, settings, InferenceOptions(compiled=True))
    return [
        Measurement("eager", usual, "stream the pocket student"),
        Measurement("compiled", compiled, "stream it with CUDA graphs", cuda=True, limit=120),
    ]


def stream(settings: PartSettings, options: InferenceOptions) -> Figures:
    """Stream some seconds, decoded."""
    trained = project_root() / "data" / "pocket" / "artifact"
    seconds, repeats = (2.0, 1) if settings.small else (12.0, 3)
    with tempfile.TemporaryDirectory() as folder:
        artifact = trained if trained.is_dir() else write_stand_in(Path(folder, "artifact"))
        engine = Engine(artifact, settings.device, options)

        def timings() -> Iterator[BlockTiming]:
            return (chunk.timing for chunk in engine.stream(PROMPT, seconds))

        measured = measure_stream(timings, repeats)
    figures: Figures = {name: measured[name] for name in SHOWN}
    figures["weights"] = "artifact" if trained.is_dir() else "kept teacher as stand-in"
    return figures


def write_stand_in(folder: Path) -> Path:
    """Write an artifact of the kept codec and the kept teacher's weights; return its folder."""
    codec = kept_folder("codec")
    config = load_preset("pocket")
    settings = StreamSettings.from_config(
        config.preset, config.student, config.clips.latent_counts, read_json(codec / "codec.json")
    )
    with atomic_dir(folder) as temporary:
        write_artifact(temporary, kept_folder("teacher"), codec, replace(settings, sinks=0), {})
    return folder
