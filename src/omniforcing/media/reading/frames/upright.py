"""Turning of pictures as a file's display matrix says: quarter turns and mirrors."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from omniforcing.media.reading.frames.side_data import side_data
from omniforcing.media.reading.tracks import Rejected

ASKEW = 0.0175  # tangent of the angle, one degree, below which players take a picture as upright


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Read how a frame must be turned: transposed first, then flipped left-right, top-down.

    Raises:
        Rejected: if it is to be shown turned by less than a quarter, or slanted.
    """
    a, b, u, c, d, v = _matrix(frame)
    # The matrix maps a pixel (x, y) to (a x + c y, b x + d y): a coordinate that appears with a
    # minus runs backwards.
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    along, across = ((b, c), (a, d)) if transposed else ((a, d), (b, c))
    if u or v or max(map(abs, across)) > ASKEW * min(map(abs, along)):
        plain = min(abs(a - d) + abs(b + c), abs(a + d) + abs(b - c)) <= ASKEW * (abs(a) + abs(b))
        angle = abs(np.degrees(np.arctan2(b, a)))
        _refuse(f"turned by {angle:.0f} degrees" if plain else "slanted")
    if transposed:
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def refuse_stretched(frame: Any, aspect: float) -> None:
    """Reject a frame that its matrix stretches, unless that is the aspect of its pixels.

    FFmpeg makes it so for pictures that are upright and whose file states no aspect otherwise.
    """
    a, b, _, c, d, _ = _matrix(frame)
    wide, high = abs(a) + abs(c), abs(b) + abs(d)
    if abs(wide - high) > ASKEW * wide and (b or abs(aspect * high - wide) > ASKEW * wide):
        _refuse(f"stretched to {wide / max(high, 1):.2f} times its width")


def _matrix(frame: Any) -> list[int]:
    data = side_data(frame, "DISPLAYMATRIX")
    return [1, 0, 0, 0, 1, 0] if data is None else list(map(int, np.frombuffer(data, "<i4")[:6]))


def _refuse(how: str) -> NoReturn:
    raise Rejected(
        "media.askew-picture",
        f"it is to be shown {how}, where only quarter turns and mirrors can be undone: "
        "export it upright from a video editor",
    )


def upright(pixels: NDArray[Any], how: tuple[bool, bool, bool]) -> NDArray[Any]:
    """Turn a picture ``[H, W, 3]`` as ``orientation`` says."""
    transposed, left_right, top_down = how
    pixels = pixels.transpose(1, 0, 2) if transposed else pixels
    pixels = pixels[:, ::-1] if left_right else pixels
    return np.ascontiguousarray(pixels[::-1] if top_down else pixels)
