"""Clips that an artifact makes, to be measured like any others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import MANIFEST, read_json_object
from omniforcing.core.pair import Media, Pair
from omniforcing.core.random import step_seed
from omniforcing.evaluation.measures.clips import Clip, Skipped, measurable
from omniforcing.streaming.artifact import SETTINGS_FILE
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.live import Stream


def is_artifact(folder: Path) -> bool:
    """Whether a folder is an artifact."""
    return (folder / SETTINGS_FILE).is_file()


def captions_for(file: Path | None, shards: Path | None, most: int | None) -> list[str]:
    """Captions to make clips for.

    Args:
        file: text file with a caption in each line; None for those of ``shards``.
        shards: an output of stage shards, whose held-out captions are taken.
        most: number of captions at most.

    Raises:
        OmniForcingError: if there is no caption, or the file cannot be read.
    """
    from omniforcing.data.shards import read_raw
    from omniforcing.data.sources import HELDOUT

    if file is not None:
        captions = [line.strip() for line in _text(file).splitlines() if line.strip()]
    elif shards is not None and _holds_shards(shards):
        captions = [raw["txt"].decode() for _, raw in read_raw(shards, HELDOUT)]
    else:
        captions = []
    if not captions:
        raise OmniForcingError(
            "pipeline.no-captions",
            "an artifact makes clips for captions, and there are none; give --captions a file "
            "with one in each line, or --against an output of stage shards with held-out clips",
        )
    return captions[:most]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OmniForcingError(
            "file.unreadable", f"{file} cannot be read as UTF-8 text ({error}); name another file"
        ) from error


def _holds_shards(folder: Path) -> bool:
    manifest = folder / MANIFEST
    return manifest.is_file() and read_json_object(manifest).get("kind") == "shards"


def generated_clips(
    artifact: Path, captions: Sequence[str], seconds: float | None, seed: int, device: str
) -> Iterator[Clip | Skipped]:
    """Make a clip for each caption; one whose sound is not finite cannot be measured.

    Args:
        artifact: folder of the artifact.
        captions: what to make.
        seconds: length of the clips; None for what the student was trained on.
        seed: seed of them all.
        device: device to compute on.

    Raises:
        OmniForcingError: if the artifact cannot be used, or a caption cannot be a prompt.
    """
    engine = Engine(artifact, device)
    length = seconds or engine.settings.trained_seconds
    for index, caption in enumerate(captions):
        with engine.stream(caption, length, step_seed(seed, index, "measure")) as stream:
            media = whole(stream, engine.settings.sample_rate)
        yield measurable(Clip(f"{index:06d}", media, caption))


def whole(stream: Stream, rate: int) -> Media:
    """Take all of a stream: its frames, and its sound at 16 kHz."""
    import torch

    from omniforcing.media.mel import resample

    chunks = list(stream)
    frames = np.concatenate([chunk.frames for chunk in chunks])
    samples = np.concatenate([chunk.samples for chunk in chunks], 1)
    return Pair(frames, resample(torch.from_numpy(samples), rate).numpy())
