"""What the measures need of a set of clips, so that no clip is looked at twice or kept in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.files import read_json, write_json
from omniforcing.latents import Pair
from omniforcing.layout import SAMPLE_RATE
from omniforcing.metrics.events import Heard, Media, Seen, colours_in, hear, see

RECORDS = "observations.json"
FEATURES = "features.safetensors"


@dataclass(frozen=True)
class Observation:
    """One clip. ``colours`` are those its caption names: none means a caption of another world than the pocket's."""

    caption: str
    seconds: float
    colours: list[str]
    seen: Seen
    heard: Heard


@dataclass(frozen=True)
class Observed:
    """A set of clips: observations, and features per whole second ``[N, D]``."""

    clips: list[Observation]
    features: Pair[NDArray[Any]]


def observe(media: Media, caption: str) -> Observation:
    """Look at and listen to one clip: frames uint8 ``[T, H, W, 3]``, samples float32 ``[2, N]``."""
    colours = colours_in(caption)
    seconds = np.asarray(media.audio).shape[-1] / SAMPLE_RATE
    return Observation(caption, seconds, colours, see(media.video, max(1, len(colours))), hear(media.audio))


def save_observed(observed: Observed, folder: Path) -> None:
    """Write observations and features into ``folder``."""
    from safetensors.numpy import save_file

    write_json(folder / RECORDS, [asdict(clip) for clip in observed.clips])
    save_file(dict(observed.features.items()), folder / FEATURES)


def load_observed(folder: Path) -> Observed:
    """Read back what ``save_observed`` wrote."""
    from safetensors.numpy import load_file

    features = load_file(folder / FEATURES)
    clips = [
        Observation(**{**record, "seen": Seen(**record["seen"]), "heard": Heard(**record["heard"])})
        for record in read_json(folder / RECORDS)
    ]
    return Observed(clips, Pair(features["video"], features["audio"]))
