"""A decoded frame and when it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from omniforcing.media.reading.frames.colour import Colour, convert, describe, to_rgb
from omniforcing.media.reading.frames.upright import orientation, upright
from omniforcing.media.reading.stated import NOTHING, Stated


@dataclass
class Picture:
    """A decoded frame and when it is shown.

    Attributes:
        time: seconds on the file's clock.
        frame: the decoded frame; None where frames are missing.
        whole: whether it and all that it follows were decoded without an error.
        interlaced: whether it was two fields in the file.
        stated: what the container states about it.
        colour: how its colours are read.
        wider: how much wider its pixels are than those of the first.
    """

    time: float
    frame: Any
    whole: bool
    interlaced: bool = False
    wider: float = 1.0
    stated: Stated = NOTHING
    colour: Colour | None = None
    _pixels: NDArray[Any] | None = field(default=None, repr=False)

    def pixels(self, reformatter: VideoReformatter) -> NDArray[Any]:
        """Return the upright RGB picture ``[H, W, 3]``, computed once, as ``to_rgb`` does."""
        if self._pixels is None:
            self.colour = describe(self.frame, self.stated.tags)
            rgb = to_rgb(self.frame, self.colour, reformatter)
            height, width = rgb.shape[:2]
            crop = self.stated.crop
            rgb = rgb[crop.top : height - crop.bottom, crop.left : width - crop.right]
            self._pixels = upright(rgb, orientation(self.frame))
        return self._pixels

    def rgb(self, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        """Return the upright picture in BT.709, uint8 ``[H, W, 3]``."""
        pixels = self.pixels(reformatter)
        assert self.colour is not None
        return convert(pixels, self.colour)
