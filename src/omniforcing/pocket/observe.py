"""What the measures need of a set of clips, so that no clip is looked at twice or kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.files import read_json, write_json
from omniforcing.core.latents import Media, Pair
from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.pocket.events import (
    AudioEvents,
    VideoEvents,
    colours_in,
    detect_audio_events,
    detect_video_events,
)

RECORDS = "observations.json"
FEATURES = "features.safetensors"
DESCRIPTORS = "descriptors.safetensors"


@dataclass(frozen=True)
class Clips:
    """Real clips: their captions, and a way to read their media in that order any number of times.

    ``read()`` yields all of them, ``read(chosen)`` decodes and yields those alone whose index is in ``chosen``.
    """

    captions: list[str]
    read: Callable[..., Iterator[Media]]


@dataclass(frozen=True)
class Observation:
    """One clip. ``colours`` are those its caption names: none means a caption of another world than the pocket's."""

    caption: str
    seconds: float
    colours: list[str]
    seen: VideoEvents
    heard: AudioEvents


@dataclass(frozen=True)
class ObservationSet:
    """A set of N clips: observations, Frechet features per whole second ``[N * K, D]``, and descriptors ``[N, D]``."""

    clips: list[Observation]
    features: Pair[NDArray[Any]]
    descriptors: Pair[NDArray[Any]]


def observe(media: Media, caption: str) -> Observation:
    """Look at and listen to one clip: frames uint8 ``[T, H, W, 3]``, samples float32 ``[2, N]``."""
    colours = colours_in(caption)
    seconds = np.asarray(media.audio).shape[-1] / SAMPLE_RATE
    return Observation(
        caption,
        seconds,
        colours,
        detect_video_events(media.video, max(1, len(colours))),
        detect_audio_events(media.audio),
    )


def save_observations(observed: ObservationSet, folder: Path) -> None:
    """Write observations, features and descriptors into ``folder``."""
    write_json(folder / RECORDS, [asdict(clip) for clip in observed.clips])
    save_pair(observed.features, folder / FEATURES)
    save_pair(observed.descriptors, folder / DESCRIPTORS)


def load_observations(folder: Path) -> ObservationSet:
    """Read back what ``save_observations`` wrote."""
    clips = [
        Observation(
            **{
                **record,
                "seen": VideoEvents(**record["seen"]),
                "heard": AudioEvents(**record["heard"]),
            }
        )
        for record in read_json(folder / RECORDS)
    ]
    return ObservationSet(clips, load_pair(folder / FEATURES), load_pair(folder / DESCRIPTORS))


def save_pair(pair: Pair[NDArray[Any]], path: Path) -> None:
    """Write an array per stream as one safetensors file."""
    from safetensors.numpy import save_file

    save_file(dict(pair.items()), path)


def load_pair(path: Path) -> Pair[NDArray[Any]]:
    """Read back what ``save_pair`` wrote."""
    from safetensors.numpy import load_file

    return Pair(**load_file(path))
