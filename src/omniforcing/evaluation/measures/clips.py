"""Clips to be measured, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import MANIFEST, read_json_object
from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.core.pair import Media
from omniforcing.data.captions.files import find_captions
from omniforcing.data.sources import VIDEO_SUFFIXES
from omniforcing.evaluation.measures.curves import Array, motion_curve, onset_curve
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.tracks import Rejected

LONGEST = 10  # seconds of a clip; longer files are several clips
# Height to which pictures are reduced: nothing here sees finer, and a long file stays in memory.
HEIGHT = 256


@dataclass(frozen=True)
class Clip:
    """A clip to be measured.

    Attributes:
        name: of its file, with the number of the cut where there are several.
        media: frames uint8 ``[1+24K, H, W, 3]`` at 24 fps, samples float32 ``[2, 16000K]``.
        caption: what it should show, if that is known.
        embedded: features that several measures need, by encoder.
    """

    name: str
    media: Media
    caption: str | None = None
    embedded: dict[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return float(self.media.audio.shape[-1] / SAMPLE_RATE)

    @cached_property
    def onsets(self) -> Array:
        """``onset_curve`` of the sound, which several measures need."""
        return onset_curve(self.media.audio)

    @cached_property
    def motion(self) -> Array:
        """``motion_curve`` of the picture."""
        return motion_curve(self.media.video)

    @cached_property
    def luma(self) -> NDArray[np.float32]:
        """Luma of the frames ``[T, H, W]``, 0 to 255."""
        weights = np.array([0.2126, 0.7152, 0.0722], np.float32)
        luma: NDArray[np.float32] = self.media.video.astype(np.float32) @ weights
        return luma


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be measured, and why."""

    name: str
    why: str


def measurable(clip: Clip) -> Clip | Skipped:
    """Pass on a clip that was made, unless its sound holds values that are no numbers."""
    if np.isfinite(clip.media.audio).all():
        return clip
    return Skipped(clip.name, "its sound holds values that are no numbers")


def read_clips(source: Path, most: int | None = None) -> Iterator[Clip | Skipped]:
    """Read the clips of a folder.

    Args:
        source: an output of stage shards, or a folder of videos, whose captions are where stage
            clips looks for them, or nowhere.
        most: number of clips after which to stop.

    Raises:
        OmniForcingError: if the folder is not there or holds no clip.
    """
    if not source.is_dir():
        raise OmniForcingError(
            "file.not-a-folder", f"{source} is not a folder; give one of videos, or of shards"
        )
    given, first = 0, ""
    for clip in _shards(source) if (source / MANIFEST).is_file() else _videos(source):
        if most is not None and given == most:
            return
        given += isinstance(clip, Clip)
        if isinstance(clip, Skipped):
            first = first or f"; {clip.name}: {clip.why}"
        yield clip
    if not given:
        raise OmniForcingError(
            "data.no-clips",
            f"{source} holds no clip that can be read{first}; give videos with sound, or shards",
        )


def _shards(folder: Path) -> Iterator[Clip]:
    from omniforcing.data.shards import read_shards

    kind = read_json_object(folder / MANIFEST).get("kind", "something else")
    if kind != "shards":
        raise OmniForcingError(
            "data.wrong-folder", f"{folder} holds {kind}; clips are in the output of stage shards"
        )
    for sample in read_shards(folder):
        yield Clip(sample["key"], sample["media"], sample["caption"])


def _videos(folder: Path) -> Iterator[Clip | Skipped]:
    captions = find_captions(folder, None)
    files = [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    videos = [name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    captions.match(folder, videos, files)
    for name in videos:
        caption = None
        with suppress(Rejected):  # clips without a caption, or with an unreadable one, have none
            caption = captions.of(folder, name)
        yield from _cuts(folder / name, name, caption)


def _cuts(path: Path, name: str, caption: str | None) -> Iterator[Clip | Skipped]:
    from omniforcing.media.reading.conform import ClipCutter
    from omniforcing.media.reading.probe import probe

    try:
        info = probe(path)
        seconds = min(info.video_end, info.audio_end) - max(info.times[0], info.audio_start)
        wide = info.width * info.aspect / info.height
        height = min(HEIGHT, info.height) // 2 * 2
        form = ClipFormat(height, round(height * wide / 2) * 2, max(1, min(LONGEST, int(seconds))))
        cutter = ClipCutter(path, form, info=info)
    except Rejected as error:
        yield Skipped(name, str(error))
        return
    for cut in range(cutter.cuts):
        numbered = f"{name}#{cut + 1}" if cutter.cuts > 1 else name
        try:
            yield Clip(numbered, cutter.clip(cut), caption)
        except Rejected as error:
            yield Skipped(numbered, str(error))
