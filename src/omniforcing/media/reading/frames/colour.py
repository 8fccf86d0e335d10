"""Colours of a decoded frame: BT.709 RGB for a display of standard range.

Matrix and range are those that the file states; what it leaves open follows the convention of
players. Wide primaries and the two HDR curves (ITU-R BT.2100) are converted, standard ones are left
alone, as players do.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from numpy.typing import NDArray

from omniforcing.media.reading.frames.side_data import side_data
from omniforcing.media.reading.stated import Tags
from omniforcing.media.reading.tracks import Rejected

# AVColorSpace of FFmpeg: those that swscale converts, by its own name of each.
_RGB, UNSPECIFIED = 0, 2
UNTAGGED = Tags()
_MATRICES = {
    1: ("bt709", Colorspace.ITU709),
    4: ("fcc", Colorspace.FCC),
    5: ("bt601", Colorspace.ITU601),
    6: ("bt601", Colorspace.ITU601),
    7: ("smpte240m", Colorspace.SMPTE240M),
    9: ("bt2020", Colorspace.BT2020),
    10: ("bt2020", Colorspace.BT2020),
}
# Where a file states no matrix, players take BT.709 for pictures wider or higher than this.
SD_WIDTH, SD_HEIGHT = 1279, 576
_WIDE = {
    int(ColorPrimaries.BT2020): (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    int(ColorPrimaries.SMPTE431): (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    int(ColorPrimaries.SMPTE432): (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_BT709 = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
_D65 = (0.3127, 0.3290)
_HDR = {int(ColorTrc.SMPTE2084): "pq", int(ColorTrc.ARIB_STD_B67): "hlg"}
# Luminance of white in standard range, cd/m2 (ITU-R BT.2408), and peak of the HLG display.
WHITE, HLG_PEAK = 203.0, 1000.0
# Share of white from which highlights are rolled off, so that those up to HLG_PEAK keep detail.
KNEE = 0.75
GAMMA = 2.4  # of a display of standard range (ITU-R BT.1886)
BACKGROUND = 0  # level on which transparent pictures are composed: players show them on black


@dataclass(frozen=True)
class Colour:
    """How the colours of a frame are read.

    Attributes:
        matrix: swscale's matrix.
        full: whether black is 0 and not 16.
        curve: ``sdr``, ``pq`` or ``hlg``.
        primaries: FFmpeg's number of the primaries.
        words: the same for people, such as ``bt601 tv, untagged``.
    """

    matrix: Colorspace
    full: bool
    curve: str
    primaries: int
    words: str

    @property
    def deep(self) -> bool:
        """Whether ``convert`` has work, and so needs 16 bits."""
        return self.curve != "sdr" or self.primaries in _WIDE


def describe(frame: Any, tags: Tags = UNTAGGED) -> Colour:
    """Read the colour description of a frame.

    Args:
        frame: the frame; what its bitstream states comes first.
        tags: what its container states.

    Raises:
        Rejected: if it names a matrix that nothing here converts, or its colours are Dolby's own.
    """
    _refuse_own_colours(frame)
    rgb = frame.format.is_rgb or "gbr" in frame.format.name or frame.colorspace == _RGB
    stated = frame.colorspace
    if stated == UNSPECIFIED and tags.matrix in _MATRICES:
        stated = tags.matrix
    tagged = stated in _MATRICES
    if tagged:
        name, matrix = _MATRICES[stated]
    elif rgb or stated == UNSPECIFIED or frame.format.name.startswith("gray"):
        large = frame.width > SD_WIDTH or frame.height > SD_HEIGHT
        name, matrix = _MATRICES[1 if large else 5]
    else:
        raise Rejected("media.unknown-colours", f"colour matrix {stated} of FFmpeg")
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    if frame.color_range == ColorRange.UNSPECIFIED and tags.full is not None:
        full = tags.full
    transfer, primaries = frame.color_trc, frame.color_primaries
    transfer = tags.transfer if transfer == UNSPECIFIED else transfer
    primaries = tags.primaries if primaries == UNSPECIFIED else primaries
    curve = _HDR.get(transfer, "sdr")
    words = "rgb" if rgb else f"{name} {'pc' if full else 'tv'}{'' if tagged else ', untagged'}"
    if curve != "sdr":
        words += f", {curve}"
    return Colour(matrix, full, curve, primaries, words)


def _refuse_own_colours(frame: Any) -> None:
    """Raise ``Rejected`` for a frame of Dolby Vision that has no colours for other players.

    Its hints tell: FFmpeg's ``AVDOVIMetadata`` begins with the place of their header, in which
    profile and range of the base picture are bytes 4 and 10.
    """
    hints = side_data(frame, "DOVI_METADATA")
    if hints is None:
        return
    header = int.from_bytes(hints[: ctypes.sizeof(ctypes.c_size_t)], sys.byteorder)
    if hints[header + 4] == 0 and hints[header + 10]:
        raise Rejected(
            "media.unknown-colours",
            "Dolby Vision of profile 5, whose colours no standard names; convert it, as by "
            "ffmpeg's libplacebo",
        )


def to_rgb(frame: Any, colour: Colour, reformatter: VideoReformatter) -> NDArray[Any]:
    """Convert a frame to RGB ``[H, W, 3]``: uint8, or uint16 where ``convert`` must follow."""
    # Chroma at full precision: swscale's fast path is off by up to five levels.
    alpha = any(component.is_alpha for component in frame.format.components)
    rgb: NDArray[Any] = reformatter.reformat(
        frame,
        format="rgb48le" if colour.deep else "rgba" if alpha else "rgb24",
        src_colorspace=colour.matrix,
        src_color_range=ColorRange.JPEG if colour.full else ColorRange.MPEG,
        interpolation=Interpolation.BILINEAR,
        threads=1,
    ).to_ndarray()
    if rgb.shape[2] == 3:
        return rgb
    share = rgb[..., 3:].astype(np.uint16)
    blended = (rgb[..., :3] * share + BACKGROUND * (255 - share) + 127) // 255
    return blended.astype(np.uint8)


def convert(pixels: NDArray[Any], colour: Colour) -> NDArray[np.uint8]:
    """Convert RGB of another curve or other primaries to BT.709, uint8.

    Args:
        pixels: uint8, or uint16 as ``to_rgb`` gives them where ``colour.deep``, ``[..., 3]``.
        colour: description of their frame.
    """
    if not colour.deep:
        return pixels
    linear = _to_linear(colour.curve)[pixels]
    if colour.curve == "hlg":
        # The display's system gamma of 1.2 acts on luminance (BT.2100, table 5).
        luminance = linear @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        linear = linear * (np.maximum(luminance, 1e-6) ** 0.2)[..., None] * (HLG_PEAK / WHITE)
    if colour.primaries in _WIDE:
        linear = linear @ _primaries(colour.primaries).T
    if colour.curve != "sdr":
        linear = _roll_off(linear)
    signal = np.clip(linear, 0, 1) ** (1 / GAMMA)
    result: NDArray[np.uint8] = np.rint(signal * 255).astype(np.uint8)
    return result


@cache
def _to_linear(curve: str) -> NDArray[np.float32]:
    """Linear light of every 16-bit signal, as a share of white (HLG: of the scene's peak)."""
    signal = np.arange(65536) / 65535
    if curve == "pq":
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        root = signal ** (1 / m2)
        light = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) / WHITE
    elif curve == "hlg":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**GAMMA
    return light.astype(np.float32)


def _roll_off(linear: NDArray[Any]) -> NDArray[Any]:
    """Bend shares of white above ``KNEE`` so that those of the HLG display's peak become 1."""
    room, span = 1 - KNEE, HLG_PEAK / WHITE - KNEE
    above = np.maximum(linear - KNEE, 0)
    # A curve of slope 1 at the knee that reaches the top of the room at the end of the span.
    bent = KNEE + above / (1 + above * (1 / room - 1 / span))
    return np.where(linear > KNEE, bent, linear)


@cache
def _primaries(primaries: int) -> NDArray[np.float32]:
    """Matrix ``[3, 3]`` from linear RGB of wide primaries to linear RGB of BT.709."""
    return (np.linalg.inv(_to_xyz(_BT709)) @ _to_xyz(_WIDE[primaries])).astype(np.float32)


def _to_xyz(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    points = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in _pairs(primaries)]).T
    x, y = _D65
    white = np.array([x / y, 1.0, (1 - x - y) / y])
    return points * np.linalg.solve(points, white)


def _pairs(values: tuple[float, ...]) -> list[tuple[float, float]]:
    return list(zip(values[::2], values[1::2], strict=True))
