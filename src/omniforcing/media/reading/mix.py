"""Channels of a sound track: their names, and their mix to stereo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from omniforcing.media.reading.tracks import Rejected

Samples = NDArray[np.float32]

# Share of each channel in (left, right) after ITU-R BS.775, which drops LFE; a channel that is not
# listed goes to both at 3 dB less.
_HALF = 0.5**0.5
_LEFT, _RIGHT = ("FL", "FLC", "DL"), ("FR", "FRC", "DR")
_LEFT_AROUND = ("BL", "SL", "WL", "TFL", "TBL", "TSL", "SDL", "BFL", "SSL", "TTL")
_RIGHT_AROUND = ("BR", "SR", "WR", "TFR", "TBR", "TSR", "SDR", "BFR", "SSR", "TTR")
DOWNMIX = {name: (1.0, 0.0) for name in _LEFT} | {name: (0.0, 1.0) for name in _RIGHT}
DOWNMIX |= {name: (_HALF, 0.0) for name in _LEFT_AROUND}
DOWNMIX |= {name: (0.0, _HALF) for name in _RIGHT_AROUND}
DOWNMIX |= {"FC": (_HALF, _HALF), "LFE": (0.0, 0.0), "LFE2": (0.0, 0.0)}
# First-order ambisonics heard by two cardioids to the sides; the other components cancel or are
# height and depth.
DOWNMIX |= {"AMBI0": (0.5, 0.5), "AMBI1": (0.5, -0.5), "AMBI2": (0.0, 0.0), "AMBI3": (0.0, 0.0)}
# Names of channels that a file leaves unnamed, by their number: FFmpeg's default layouts.
UNNAMED = {
    1: ["FC"],
    2: ["FL", "FR"],
    3: ["FL", "FR", "LFE"],
    4: ["FL", "FR", "FC", "BC"],
    5: ["FL", "FR", "FC", "BL", "BR"],
    6: ["FL", "FR", "FC", "LFE", "BL", "BR"],
    7: ["FL", "FR", "FC", "LFE", "BC", "SL", "SR"],
    8: ["FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"],
}
MOST_PLANES = 8  # of a frame in FFmpeg; more, and these very ones, PyAV cannot read
# Scale and middle of the integer formats.
_INTEGERS = {"u8": (2**7, 2**7), "s16": (2**15, 0), "s32": (2**31, 0), "s64": (2**63, 0)}


def channel_names(audio: Any) -> list[str]:
    """Return a track's channel names as its header lists them; to be asked once, as it is opened.

    PyAV (18.1) ends the process when frames carry certain layouts. So the decoder forgets all but
    the number of channels of a layout without a name.
    """
    codec = audio.codec_context
    layout = codec.layout
    names = [str(channel.name) for channel in layout.channels]
    if " channels" in layout.name:  # none of FFmpeg's named layouts
        codec.layout = f"{len(names)}C"
    return names


def stereo(frame: Any, header: Sequence[str] = ()) -> Samples:
    """Mix an audio frame of any format and layout to float32 ``[2, N]``.

    Args:
        frame: the decoded frame.
        header: names of channels for a frame that names none.
    """
    samples = _floats(frame)
    names = [channel.name for channel in frame.layout.channels]
    if not _named(names) and len(header) == len(names):
        names = list(header)
    if not _named(names):
        names = UNNAMED.get(len(names), names)
    if len(names) == 1:
        return np.repeat(samples, 2, 0)
    matrix = np.array([DOWNMIX.get(name, (_HALF, _HALF)) for name in names], np.float32).T
    # Scaled down by the louder side's total, and never up.
    with np.errstate(invalid="ignore"):  # what is not finite is rejected later, by clips
        mixed: Samples = (matrix / max(1.0, np.abs(matrix).sum(1).max())) @ samples
    return mixed


def _named(names: Sequence[str]) -> bool:
    return not any(name in ("NONE", "UNK", "UNSD") for name in names)


def _floats(frame: Any) -> Samples:
    """Return the samples of a frame as float32 ``[channels, N]``."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels >= MOST_PLANES:
        # PyAV counts planes up to an empty one, which does not come here (18.1).
        frame = av.AudioResampler(format="flt").resample(frame)[0]
    raw = frame.to_ndarray()
    kind = frame.format.name.removesuffix("p")
    if not frame.format.is_planar:
        raw = raw.reshape(-1, channels).T
    if raw.shape[0] != channels:
        raise Rejected(
            "media.undecodable-sound", f"{raw.shape[0]} of {channels} channels were decoded"
        )
    if kind in _INTEGERS:
        scale, middle = _INTEGERS[kind]
        return ((raw.astype(np.float64) - middle) / scale).astype(np.float32)
    return np.ascontiguousarray(raw, dtype=np.float32)
