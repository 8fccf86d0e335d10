"""Colours of pictures that the project encodes: BT.709, converted and named.

The class stands alone, so that a stream's muxer needs no reader of files.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    VideoReformatter,
)
from numpy.typing import NDArray

# What x264 must be told besides ``Bt709.tag``: chroma lies in the middle, where swscale puts it.
# H.264 says left if nothing says otherwise.
X264_PARAMS = "chromaloc=1"


class Bt709:
    """Convert RGB pictures to frames for an encoder: 4:2:0, BT.709, 16 to 235.

    All of it is named in the frames, and by ``tag`` in an encoder: browsers take pictures that name
    less for BT.709 at any size, and other players for BT.601 at small ones.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, rgb: NDArray[np.uint8]) -> Any:
        """Convert a picture uint8 ``[H, W, 3]``."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
        frame.color_range = ColorRange.JPEG
        frame = self._reformatter.reformat(
            frame,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return frame

    @staticmethod
    def tag(encoder: Any) -> None:
        """Name the colours in a codec context of an encoder."""
        encoder.colorspace, encoder.color_range = Colorspace.ITU709, ColorRange.MPEG
        encoder.color_primaries, encoder.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
