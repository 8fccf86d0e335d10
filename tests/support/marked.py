"""A short stream that says who made it."""

import numpy as np

from omniforcing.media.marking import Mark
from omniforcing.media.mux import Muxer, OutputBuffer

ARTIFACT = "0123456789abcdef" * 4
MARK = Mark("pocket", ARTIFACT)


def stream(mark: Mark | None = MARK) -> bytes:
    """A stream of two blocks of a tenth of a second."""
    pieces = OutputBuffer()
    with Muxer(pieces, 16, 16, 16000, mark=mark) as muxer:
        for block in range(2):
            frames = np.full((3, 16, 16, 3), 60 * block, np.uint8)
            muxer.write(frames, np.zeros((2, 2000), np.float32))
    return pieces.take()
