"""Observations of clips: all that the measures need, so that no clip is decoded twice or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.files import read_json, write_json
from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.core.pair import Media, Pair
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
    """Real clips: captions, and a function that reads their media any number of times.

    Attributes:
        captions: one for each clip.
        read: ``read()`` yields the media of all clips in that order; ``read(chosen)`` decodes and
            yields only the clips whose index is in ``chosen``.
    """

    captions: list[str]
    read: Callable[..., Iterator[Media]]


@dataclass(frozen=True)
class Observation:
    """Events of one clip.

    Attributes:
        caption: what the clip should show.
        seconds: its length.
        colours: colours that the caption names; none for a world other than the pocket's.
        seen: events of its picture.
        heard: events of its sound.
    """

    caption: str
    seconds: float
    colours: list[str]
    seen: VideoEvents
    heard: AudioEvents


@dataclass(frozen=True)
class ObservationSet:
    """Observations of N clips of K seconds, with what distances between them are measured on.

    Attributes:
        clips: observation of each clip.
        features: features for Frechet distances, a row per whole second ``[N * K, D]``.
        descriptors: descriptors for nearest neighbours, a row per clip ``[N, D]``.
    """

    clips: list[Observation]
    features: Pair[NDArray[Any]]
    descriptors: Pair[NDArray[Any]]


def observe(media: Media, caption: str) -> Observation:
    """Detect the events of one clip.

    Args:
        media: frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``.
        caption: what it should show.
    """
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
    """Read what ``save_observations`` wrote into ``folder``."""
    clips = []
    for record in read_json(folder / RECORDS):
        seen, heard = VideoEvents(**record.pop("seen")), AudioEvents(**record.pop("heard"))
        clips.append(Observation(**record, seen=seen, heard=heard))
    return ObservationSet(clips, load_pair(folder / FEATURES), load_pair(folder / DESCRIPTORS))


def save_pair(pair: Pair[NDArray[Any]], path: Path) -> None:
    """Write an array per stream as one safetensors file."""
    from safetensors.numpy import save_file

    save_file(dict(pair.items()), path)


def load_pair(path: Path) -> Pair[NDArray[Any]]:
    """Read what ``save_pair`` wrote to ``path``."""
    from safetensors.numpy import load_file

    return Pair(**load_file(path))
