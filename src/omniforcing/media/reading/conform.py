"""Conform any video file: cut it into clips of one format.

A clip has 24 fps, one picture size, K whole seconds and 16 kHz stereo, with picture and sound on
one clock.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.layout import FPS, SAMPLE_RATE, clip_frames, clip_samples
from omniforcing.core.pair import Media, Pair
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.frames.colour import convert
from omniforcing.media.reading.frames.picture import Picture
from omniforcing.media.reading.pictures import EPSILON, LOOK_AHEAD, PictureReader, sizes
from omniforcing.media.reading.probe import probe
from omniforcing.media.reading.sound import Samples, Sound, read_sound
from omniforcing.media.reading.tracks import MediaInfo, PathOrBytes, Rejected

Frames = NDArray[np.uint8]

# Seconds by which sound may begin after the picture or end before it; silence fills them.
SOUND_SLACK = 1 / FPS
MAX_ENLARGE = 2.0


class ClipCutter:
    """Cut a video file into clips of one format.

    Clip ``i`` starts at ``start(i)``; its last frame is the first frame of clip ``i + 1``.

    Args:
        source: path or content of the file.
        form: format of the clips.
        language: language of the sound to prefer, as files name it (``eng``).
        info: what ``probe`` found in the file, if that is known already.

    Attributes:
        info: properties of the file.
        cuts: clips that it holds.

    Raises:
        Rejected: if ``probe`` rejects the file, or it is too short or too small.
    """

    def __init__(
        self,
        source: PathOrBytes,
        form: ClipFormat,
        language: str | None = None,
        info: MediaInfo | None = None,
    ) -> None:
        self.form, self._source = form, source
        self.info: MediaInfo = info or probe(source, language)
        self._box: tuple[int, int, int, int] | None = None
        try:
            self._box = crop_box((self.info.height, self.info.width), self.info.aspect, form)
        except Rejected:
            # Recorders of calls begin small and grow: each clip is judged by what it shows.
            if not self._grows():
                raise
        # The first clip starts with the first frame at which both streams have begun, and the last
        # ends before either ends: the picture may be held for half an output frame, the sound
        # padded for a whole one.
        times = self.info.times
        begun = times[times >= self.info.audio_start - SOUND_SLACK - EPSILON]
        self._origin = float(begun[0] if len(begun) else times[-1])
        end = min(self.info.video_end + LOOK_AHEAD, self.info.audio_end + SOUND_SLACK)
        self.cuts = int((end - self._origin + EPSILON) // form.seconds)
        if self.cuts < 1:
            raise Rejected(
                "media.too-short",
                f"picture and sound share {end - self._origin:.2f} s, "
                f"a clip lasts {form.seconds} s",
            )

    def _grows(self) -> bool:
        """Whether a later picture is large enough."""
        for height, width in sizes(self._source, self.info):
            try:
                crop_box((height, width), self.info.aspect, self.form)
            except Rejected:
                continue
            return True
        return False

    def start(self, cut: int) -> float:
        """Return the time of the first frame of a cut, in seconds on the file's clock."""
        return float(self._origin + cut * self.form.seconds)

    def clip(self, cut: int) -> Media:
        """Decode and conform one clip.

        Args:
            cut: its index, below ``cuts``.

        Returns:
            Frames uint8 ``[1+24K, H, W, 3]`` and samples float32 ``[2, 16000K]``.

        Raises:
            Rejected: if frames or sound cannot be decoded.
        """
        if cut >= self.cuts:  # of a file that was replaced since it was listed
            raise Rejected("media.too-short", f"it holds {self.cuts} clips")
        return Pair(self._frames(self.start(cut)), self._samples(cut))

    @cached_property
    def _reader(self) -> PictureReader:
        return PictureReader(self._source, self.info)

    @cached_property
    def _sound(self) -> Sound:
        tracks = self.info.video_index, self.info.audio_index
        parts = self.info.edits.audio if self.info.edits else ()
        return read_sound(self._source, self._origin, tracks, parts)

    def _frames(self, start: float) -> Frames:
        count = clip_frames(self.form.seconds)
        frames = np.empty((count, self.form.height, self.form.width, 3), np.uint8)
        shown: Picture | None = None
        for index in range(count):
            picture = self._reader.at(start + index / FPS)
            # A source frame that is shown several times is converted once.
            frames[index] = frames[index - 1] if picture is shown else self._conformed(picture)
            shown = picture
        return frames

    def _conformed(self, picture: Picture) -> Frames:
        pixels = picture.pixels(self._reader.reformatter)
        box = self._box
        changed = pixels.shape[:2] != (self.info.height, self.info.width)
        if box is None or changed or picture.wider != 1:
            # Size and shape may change on the way: players fit each picture into the same window.
            box = crop_box(pixels.shape[:2], self.info.aspect * picture.wider, self.form)
        assert picture.colour is not None
        return convert(resize(pixels, box, self.form), picture.colour)

    def _samples(self, cut: int) -> Samples:
        count, rate = clip_samples(self.form.seconds), SAMPLE_RATE
        first, last = cut * count, (cut + 1) * count
        lost = [(begin - self._origin, end - self._origin) for begin, end in self.info.damage.audio]
        for begin, end in [*self._sound.damaged, *lost]:
            if begin * rate < last and end * rate > first:
                raise Rejected(
                    "media.undecodable-sound",
                    f"the sound from {max(begin, 0) + self._origin:.2f} s on is damaged",
                )
        part = self._sound.samples[:, first:last]
        missing = count - part.shape[1]
        # The packets may promise sound that does not decode.
        if missing > SOUND_SLACK * rate + 1:
            raise Rejected(
                "media.undecodable-sound", f"{missing / rate:.2f} s of the sound are missing"
            )
        if not np.isfinite(part).all():
            raise Rejected(
                "media.undecodable-sound",
                f"the sound from {self.start(cut):.2f} s on holds values that are no numbers",
            )
        return np.pad(part, ((0, 0), (0, missing)))


@lru_cache(maxsize=1)
def cutter_of(path: Path, form: ClipFormat, language: str | None) -> ClipCutter:
    """Return the cutter of a file; the last one is kept, for cuts that follow each other.

    Raises:
        Rejected: as ``ClipCutter``.
    """
    return ClipCutter(path, form, language)


def crop_box(size: tuple[int, int], aspect: float, form: ClipFormat) -> tuple[int, int, int, int]:
    """Find the largest centred box of a picture that has the format's shape.

    Args:
        size: height and width of the picture in pixels.
        aspect: width of a pixel over its height.
        form: format of the clips.

    Returns:
        Top, left, height and width of the box in source pixels.

    Raises:
        Rejected: if the box would have to be enlarged more than twice.
    """
    # Source pixels need not be square: the shape is that of the picture as it is seen.
    shape = form.width / form.height / aspect
    height = min(size[0], round(size[1] / shape))
    width = min(size[1], round(size[0] * shape))
    if height * MAX_ENLARGE < form.height or width * MAX_ENLARGE < form.width:
        found = f"{size[1]}x{size[0]} would be enlarged more than {MAX_ENLARGE:g} times"
        raise Rejected("media.too-small", f"{found} to fill {form.width}x{form.height}")
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def resize(pixels: NDArray[Any], box: tuple[int, int, int, int], form: ClipFormat) -> NDArray[Any]:
    """Crop a picture to a box and resize it to the format's size, antialiased.

    Args:
        pixels: uint8 or uint16 ``[h, w, 3]``.
        box: top, left, height and width in pixels.
        form: format of the clips.

    Returns:
        The picture ``[H, W, 3]`` in the same type.
    """
    import torch
    from torch.nn.functional import interpolate

    top, left, height, width = box
    pixels = pixels[top : top + height, left : left + width]
    if (height, width) == (form.height, form.width):
        return pixels
    deep = pixels.dtype == np.uint16
    source = torch.from_numpy(pixels.astype(np.float32) if deep else pixels)
    small = interpolate(
        source.permute(2, 0, 1)[None],
        (form.height, form.width),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    result = small[0].permute(1, 2, 0).contiguous().numpy()
    return np.rint(result).astype(np.uint16) if deep else result
