"""Mux blocks of frames and samples into one fragmented MP4 that plays while it grows.

A stream has one muxer, one x264 encoder and one AAC encoder for its whole life. Every block becomes
a fragment that begins with a keyframe. Time stamps are counts of frames and samples, so they cannot
drift. Picture and sound may lag each other by the look-ahead of their decoders: a fragment holds
whatever has come of either.
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
from omniforcing.media.boxes import (
    FRAME_TICKS,
    TrackFragment,
    fragment,
    header,
    video_start,
)
from omniforcing.media.bt709 import X264_PARAMS, Bt709
from omniforcing.media.marking import Mark

AAC_FRAME = 1024  # samples
# No B-frames and no look-ahead, so that a block is out as soon as it is in; keyframes only where
# the muxer asks for them.
_X264 = {
    "tune": "zerolatency",
    "preset": "veryfast",
    "forced-idr": "1",
    "x264-params": f"keyint=infinite:scenecut=0:{X264_PARAMS}",
}


class Writable(Protocol):
    """Target of a muxer."""

    def write(self, data: bytes, /) -> int:
        """Take the next bytes of the file; returns how many."""
        ...


class MediaChunk(Protocol):
    """Piece of a stream with its place in it, such as ``streaming.live.Chunk``."""

    @property
    def frames(self) -> np.ndarray:
        """Frames uint8 ``[T, H, W, 3]``."""
        ...

    @property
    def samples(self) -> np.ndarray:
        """Samples float32 ``[2, N]`` in [-1, 1]."""
        ...

    @property
    def first_frame(self) -> int:
        """Index in the stream of the first frame."""
        ...

    @property
    def first_sample(self) -> int:
        """Index in the stream of the first sample."""
        ...


class OutputBuffer:
    """Target of a muxer that hands out what was written since the last call, to send it on."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        """Append what the muxer writes; returns the number of bytes."""
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """Return the bytes written since the last call."""
        taken, self._written = bytes(self._written), bytearray()
        return taken


class Muxer:
    """Encode blocks of media into ``target``.

    As a context manager it finishes the file, unless the body fails.

    Args:
        target: binary file, or anything with ``write``.
        height: height of the frames in pixels, even.
        width: width of the frames in pixels, even.
        sample_rate: rate of the sound in Hz, one of ``boxes.SAMPLE_RATES``.
        crf: x264's constant rate factor; lower is better.
        mark: what the file says of how it was made; that a machine made it, in any case.

    Attributes:
        frames: frames written so far.
        samples: audio samples written so far.
    """

    def __init__(
        self,
        target: Writable,
        height: int,
        width: int,
        sample_rate: int,
        crf: int = 18,
        mark: Mark | None = None,
    ) -> None:
        self._target, self._mark = target, mark or Mark()
        self._video, self._audio = _video_encoder(height, width, crf), _audio_encoder(sample_rate)
        self._sample_rate, self._convert = sample_rate, Bt709()
        # Decoding times count what the encoders gave out, ``frames`` and ``samples`` what they got.
        self._fragments = self._video_start = self._audio_start = self._first_sample = 0
        # FFmpeg's AAC encoder puts one frame of silence before the sound.
        self._delay = video_start(AAC_FRAME, sample_rate)
        self.frames = 0
        self.samples = 0
        # x264's extradata holds SPS, PPS and a comment, in that order.
        self._parameters = tuple(_units(self._video.extradata))[:2]
        self._size = height, width

    @property
    def mime(self) -> str:
        """MIME type with codecs (RFC 6381), as a browser's MediaSource wants it."""
        sps = self._parameters[0]
        return f'video/mp4; codecs="avc1.{sps[1:4].hex()}, mp4a.40.2"'

    def add(self, chunk: MediaChunk) -> None:
        """Append a chunk; drop sound from before the first frame, which a resumed stream has."""
        # The sound lags the picture by the vocoder's look-ahead. A resumed stream begins with a
        # frame, but its first samples belong to frames of before: both must start at one instant.
        if self.frames == 0:
            self._first_sample = round(chunk.first_frame * self._sample_rate / FPS)
        early = max(0, self._first_sample - chunk.first_sample)
        self.write(chunk.frames, chunk.samples[:, early:])

    def write(self, frames: np.ndarray, samples: np.ndarray) -> None:
        """Append a block as one fragment.

        Args:
            frames: uint8 ``[T, H, W, 3]``, may be empty.
            samples: float32 ``[2, N]``, may be empty.
        """
        video: list[Any] = []
        for index, image in enumerate(frames):
            frame = self._convert(image)
            # A keyframe at the head of every block lets a viewer join, or seek, at any block.
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
        self._write_fragment(video, audio)

    def _write_fragment(self, video: list[Any], audio: list[Any]) -> None:
        """Write packets as a fragment; before the first fragment, write the header."""
        if not video and not audio:
            return
        if self._fragments == 0:
            sps, pps = self._parameters
            sound = self._audio.extradata, self._sample_rate
            marks = self._mark.user_data()
            begin = header(*self._size, (sps, pps), *sound, priming=AAC_FRAME, user_data=marks)
            self._target.write(begin + self._mark.packet())
        pictures = TrackFragment(
            self._video_start,
            FRAME_TICKS,
            [_length_prefixed(bytes(packet)) for packet in video],
            self._delay,
        )
        sounds = TrackFragment(self._audio_start, AAC_FRAME, [bytes(packet) for packet in audio])
        self._fragments += 1
        self._video_start += FRAME_TICKS * len(video)
        self._audio_start += AAC_FRAME * len(audio)
        self._target.write(fragment(self._fragments, pictures, sounds))

    def close(self) -> None:
        """Write what both encoders still hold."""
        self._write_fragment(self._video.encode(None), self._audio.encode(None))

    def release(self) -> None:
        """Free both encoders and their threads at once; nothing can be written afterwards."""
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
    Bt709.tag(encoder)
    encoder.options = {**_X264, "crf": str(crf)}
    # More threads would make the bytes depend on the machine, and a server's sessions share it.
    encoder.thread_count = 1
    return _opened(encoder)


def _audio_encoder(sample_rate: int) -> Any:
    encoder: Any = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.layout, encoder.format = sample_rate, "stereo", "fltp"
    encoder.time_base = Fraction(1, sample_rate)
    return _opened(encoder)


def _opened(encoder: Any) -> Any:
    # Parameter sets go into the file's header and not into every keyframe.
    encoder.flags |= Flags.global_header
    encoder.open()
    return encoder


def _units(stream: bytes) -> Iterator[bytes]:
    """Split an H.264 byte stream (Annex B) into NAL units."""
    # A start code has three or four bytes; the fourth, a zero, is left at the end of a unit, which
    # itself never ends in a zero.
    for piece in stream.split(b"\0\0\1")[1:]:
        yield piece.rstrip(b"\0")


def _length_prefixed(stream: bytes) -> bytes:
    """Replace a byte stream's start codes by lengths, as MP4 stores NAL units (14496-15)."""
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in _units(stream))
