"""One muxer, one x264 and one AAC encoder for the whole of a stream: a fragmented MP4 that plays while it grows.

Every block is a fragment of its own and begins with a keyframe. Time stamps are counts of frames and samples, so they
cannot drift. Either may lag the other by what its decoder looks ahead; a fragment holds what has come of either.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any, Protocol

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType

from omniforcing.core.layout import FPS
from omniforcing.media.boxes import TrackFragment, fragment, header

AAC_FRAME = 1024  # samples
_PICTURE = {
    "tune": "zerolatency",
    "preset": "veryfast",
    "forced-idr": "1",
    "x264-params": "keyint=infinite:scenecut=0",
}


class Writable(Protocol):
    """All that a muxer asks of its target."""

    def write(self, data: bytes, /) -> int: ...


class MediaChunk(Protocol):
    """A piece of a stream (``live.Chunk``): frames uint8 ``[T, H, W, 3]``, samples float32 ``[2, N]``, and their places."""

    @property
    def frames(self) -> np.ndarray: ...

    @property
    def samples(self) -> np.ndarray: ...

    @property
    def first_frame(self) -> int: ...

    @property
    def first_sample(self) -> int: ...


class OutputBuffer:
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
        sample_rate: of the sound, one of ``boxes.SAMPLE_RATES``.
        crf: x264's quality, lower is better.
    """

    def __init__(
        self, target: Writable, height: int, width: int, sample_rate: int, crf: int = 18
    ) -> None:
        self._target = target
        self._video, self._audio = _video_encoder(height, width, crf), _audio_encoder(sample_rate)
        self._sample_rate = sample_rate
        self._fragments = self._video_start = self._audio_start = self._first_sample = 0
        self.frames = 0
        self.samples = 0
        self._parameters = tuple(_units(self._video.extradata))[:2]
        self._size = height, width

    @property
    def mime(self) -> str:
        """What a browser calls the stream."""
        sps = self._parameters[0]
        return f'video/mp4; codecs="avc1.{sps[1:4].hex()}, mp4a.40.2"'

    def add(self, chunk: MediaChunk) -> None:
        """Append a chunk; of a stream that was resumed, sound from before its first picture is left out."""
        if self.frames == 0:
            self._first_sample = round(chunk.first_frame * self._sample_rate / FPS)
        early = max(0, self._first_sample - chunk.first_sample)
        self.write(chunk.frames, chunk.samples[:, early:])

    def write(self, frames: np.ndarray, samples: np.ndarray) -> None:
        """Append a block: frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``, either of which may be empty."""
        video: list[Any] = []
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pict_type = PictureType.NONE if index else PictureType.I
            frame.pts, frame.time_base = self.frames, Fraction(1, FPS)
            video += self._video.encode(frame)
            self.frames += 1
        audio: list[Any] = []
        if samples.shape[1]:
            sound = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.clip(-1, 1)), format="fltp", layout="stereo"
            )
            sound.sample_rate = self._sample_rate
            sound.pts, sound.time_base = self.samples, Fraction(1, self._sample_rate)
            audio = self._audio.encode(sound)
            self.samples += samples.shape[1]
        self._write(video, audio)

    def _write(self, video: list[Any], audio: list[Any]) -> None:
        """A fragment of what the encoders gave out, behind the header if it is the first."""
        if not video and not audio:
            return
        if self._fragments == 0:
            sps, pps = self._parameters
            sound = self._audio.extradata, self._sample_rate
            self._target.write(header(*self._size, (sps, pps), *sound, priming=AAC_FRAME))
        pictures = TrackFragment(
            self._video_start, 1, [_length_prefixed(bytes(packet)) for packet in video]
        )
        sounds = TrackFragment(self._audio_start, AAC_FRAME, [bytes(packet) for packet in audio])
        self._fragments += 1
        self._video_start += len(video)
        self._audio_start += AAC_FRAME * len(audio)
        self._target.write(fragment(self._fragments, pictures, sounds))

    def close(self) -> None:
        """Write what both encoders still hold."""
        self._write(self._video.encode(None), self._audio.encode(None))

    def release(self) -> None:
        """Give up both encoders and their threads at once, finished or not; nothing can be written then."""
        self._video = self._audio = None

    def __enter__(self) -> Muxer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()


def _video_encoder(height: int, width: int, crf: int) -> Any:
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, FPS), Fraction(FPS)
    encoder.options = {**_PICTURE, "crf": str(crf)}
    encoder.thread_count = (
        1  # more would make the bytes depend on the machine, and server sessions share it anyway
    )
    return _opened(encoder)


def _audio_encoder(sample_rate: int) -> Any:
    encoder: Any = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.layout, encoder.format = sample_rate, "stereo", "fltp"
    encoder.time_base = Fraction(1, sample_rate)
    return _opened(encoder)


def _opened(encoder: Any) -> Any:
    encoder.flags |= (
        Flags.global_header
    )  # parameter sets go into the file's header, not into every keyframe
    encoder.open()
    return encoder


def _units(stream: bytes) -> Iterator[bytes]:
    """NAL units of an H.264 byte stream, whose start codes have three or four bytes."""
    for piece in stream.split(b"\0\0\1")[1:]:
        yield piece.rstrip(b"\0")


def _length_prefixed(stream: bytes) -> bytes:
    """The same units as MP4 holds them."""
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in _units(stream))
