"""One muxer, one x264 and one AAC encoder for the whole of a stream: a fragmented MP4 that plays while it grows.

Time stamps are counts of frames and samples, so they cannot drift. A keyframe begins every block. Sound may lag the
picture (the vocoder looks ahead); the muxer interleaves what has come.
"""

from __future__ import annotations

from fractions import Fraction
from types import TracebackType
from typing import Any, Protocol

import av
import numpy as np
from av.video.frame import PictureType

from omniforcing.layout import FPS, SAMPLE_RATE

# delay_moov keeps the edit list that cuts the AAC priming, so that both tracks start at 0; quarter-second fragments keep a
# player no further behind than that.
_CONTAINER = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "frag_duration": "250000"}
_PICTURE = {"tune": "zerolatency", "preset": "veryfast", "forced-idr": "1", "x264-params": "keyint=infinite:scenecut=0"}


class Writable(Protocol):
    """All that a muxer asks of its target."""

    def write(self, data: bytes, /) -> int: ...


class Pieces:
    """A target that hands out what was written since the last call: for sending a stream on."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        """Take what the muxer writes."""
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """Give it out, once."""
        taken, self._written = bytes(self._written), bytearray()
        return taken


class Muxer:
    """Encode blocks of media into ``target``; as a context manager it finishes the file unless the body fails.

    Args:
        target: a binary file, or anything with ``write``.
        height: of the frames, even.
        width: of the frames, even.
        crf: x264's quality, lower is better.
    """

    def __init__(self, target: Writable, height: int, width: int, crf: int = 18) -> None:
        self._container: Any = av.open(target, "w", format="mp4", options=_CONTAINER)
        self._video: Any = self._container.add_stream("libx264", rate=FPS, options={**_PICTURE, "crf": str(crf)})
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.codec_context.time_base = Fraction(1, FPS)
        self._audio: Any = self._container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        self.frames = 0
        self.samples = 0

    def write(self, frames: np.ndarray, samples: np.ndarray) -> None:
        """Append a block: frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``, either of which may be empty."""
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pict_type = PictureType.NONE if index else PictureType.I
            self._encode(self._video, frame, self.frames)
            self.frames += 1
        if samples.shape[1]:
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.clip(-1, 1)), format="fltp", layout="stereo")
            sound.sample_rate = SAMPLE_RATE
            self._encode(self._audio, sound, self.samples)
            self.samples += samples.shape[1]

    def _encode(self, stream: Any, frame: Any, count: int) -> None:
        frame.pts, frame.time_base = count, Fraction(1, FPS if stream is self._video else SAMPLE_RATE)
        self._container.mux(stream.encode(frame))

    def close(self) -> None:
        """Flush both encoders and write the end of the file."""
        for stream in (self._video, self._audio):
            self._container.mux(stream.encode(None))
        self._container.close()

    def __enter__(self) -> Muxer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
