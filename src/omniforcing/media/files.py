"""Read and write video files: frames through decord, sound and time stamps through PyAV.

Neither library can be trusted alone. decord reports times relative to the first frame, returns
wrong frames of MPEG-TS and misplaces stereo samples; PyAV decodes what is left of a truncated file.
So ``probe`` first reads a file packet by packet, for the time of each frame on the clock that its
streams share.

A source is a path or a file's content. Media are not batched: frames uint8 ``[T, H, W, 3]``,
samples float32 ``[2, N]``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Pair
from omniforcing.core.layout import FPS, SAMPLE_RATE

Frames = NDArray[np.uint8]
Samples = NDArray[np.float32]
Times = NDArray[np.floating[Any]]
PathOrBytes = Path | bytes

# Seconds by which a stream may end before its header says: containers round, and the length of the
# last packet is a guess.
END_SLACK = 0.5
# Seconds between the time stamp of an audio frame and the samples counted so far from which on they
# are a gap or an overlap, and no rounding.
GAP = 0.02
# FFmpeg's names of the containers in which decord finds every frame.
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
# Share of each channel in (left, right) after ITU-R BS.775, which drops LFE; a channel that is not
# listed goes to both at 3 dB less.
_HALF = 0.5**0.5
DOWNMIX = {"FL": (1.0, 0.0), "FR": (0.0, 1.0), "FC": (_HALF, _HALF), "LFE": (0.0, 0.0)}
DOWNMIX |= {"BL": (_HALF, 0.0), "SL": (_HALF, 0.0), "BR": (0.0, _HALF), "SR": (0.0, _HALF)}


class Rejected(OmniForcingError):
    """Error of a clip that cannot be used.

    Args:
        code: ``room.reason``; its second half in words is the ``reason`` that manifests count.
        detail: what was found in the file.
    """

    def __init__(self, code: str, detail: str) -> None:
        self.reason = code.partition(".")[2].replace("-", " ")
        self.detail = detail
        super().__init__(code, f"{self.reason}: {detail}")


@dataclass(frozen=True)
class MediaInfo:
    """Properties of a video file, as its packets and not its header state them.

    Times are in seconds on the clock that the streams share, sizes in pixels after rotation.

    Attributes:
        times: presentation times of the frames ``[T]``, ascending.
        video_end: end of the last frame.
        audio_start: time of the first audio packet.
        audio_end: end of the last audio packet.
        height: height of the upright picture.
        width: width of the upright picture.
        aspect: width of a pixel over its height.
        fps: mean frame rate.
        rate: sample rate of the sound in Hz.
        channels: audio channels.
    """

    times: Times
    video_end: float
    audio_start: float
    audio_end: float
    height: int
    width: int
    aspect: float
    fps: float
    rate: int
    channels: int


@contextmanager
def _opened(source: PathOrBytes) -> Iterator[Any]:
    """Open a source with PyAV; an error of FFmpeg becomes ``Rejected``."""
    try:
        if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
            raise Rejected("media.empty-file", "0 bytes")
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            yield container
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        raise Rejected(
            "media.not-a-readable-video", getattr(error, "strerror", None) or str(error)
        ) from error


def probe(source: PathOrBytes) -> MediaInfo:
    """Read every packet of a file and decode its first frame.

    Args:
        source: path or content of the file.

    Returns:
        Properties of its first video and audio track.

    Raises:
        Rejected: if it is empty, truncated, no readable video, or lacks picture or sound.
    """
    with _opened(source) as container:
        video, audio = _tracks(container)
        packets: dict[int, list[_Packet]] = {video.index: [], audio.index: []}
        for packet in container.demux(video, audio):
            if packet.size and not packet.is_discard:
                packets[packet.stream.index].append(_Packet(packet.pts, packet.duration or 0))
        _refuse_truncated(container, video, audio, packets)
        times, video_end = _frame_times(video, packets[video.index])
        sound = packets[audio.index]
        height, width = _upright_size(source, video.index)
        return MediaInfo(
            times=times,
            video_end=video_end,
            audio_start=float((sound[0].pts or 0) * audio.time_base),
            audio_end=_end(audio, sound),
            height=height,
            width=width,
            aspect=float(video.sample_aspect_ratio or 1),
            fps=float(video.average_rate or 0) or len(times) / max(video_end - times[0], 1e-9),
            rate=audio.rate,
            channels=audio.channels,
        )


class _Packet(NamedTuple):
    pts: int | None
    duration: int


def _end(stream: Any, packets: list[_Packet]) -> float:
    return float(max((packet.pts or 0) + packet.duration for packet in packets) * stream.time_base)


def _tracks(container: Any) -> tuple[Any, Any]:
    """Return the first video and audio track; a cover picture is no video."""
    kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
    cover = Disposition.attached_pic
    videos = (stream for stream in container.streams.video if not stream.disposition & cover)
    video = next(videos, None)
    if video is None:
        raise Rejected("media.no-video-track", f"the file holds {kinds}")
    if not container.streams.audio:
        raise Rejected("media.no-audio-track", f"the file holds {kinds}")
    return video, container.streams.audio[0]


def _refuse_truncated(
    container: Any, video: Any, audio: Any, packets: dict[int, list[_Packet]]
) -> None:
    """Reject a file whose tracks end before its index or its header says."""
    for stream in (video, audio):
        if not packets[stream.index]:
            raise Rejected("media.truncated", f"the {stream.type} track holds no packet")
        # An mp4 with its index in front opens and plays until the data ends, so nothing but the
        # index shows that a download was cut off.
        due = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if due > container.size:
            raise Rejected(
                "media.truncated",
                f"the {stream.type} track needs {due} bytes, the file has {container.size}",
            )
    end = max(_end(stream, packets[stream.index]) for stream in (video, audio))
    promised = (container.duration or 0) / av.time_base
    if end < promised - END_SLACK:
        raise Rejected("media.truncated", f"it ends at {end:.2f} s of {promised:.2f} s")


def _frame_times(video: Any, packets: list[_Packet]) -> tuple[Times, float]:
    """Return presentation times ``[T]`` and the end of the last frame, in seconds."""
    step = 1 / float(video.average_rate or FPS)
    stamps = sorted(packet for packet in packets if packet.pts is not None)
    # Some containers, such as AVI, have no time stamps: their frame rate is constant.
    if len(stamps) < len(packets):
        times = np.arange(len(packets)) * step
        return times, float(times[-1] + step)
    times = np.array([packet.pts for packet in stamps]) * float(video.time_base)
    return times, float(times[-1]) + (stamps[-1].duration * float(video.time_base) or step)


def _upright_size(source: PathOrBytes, index: int) -> tuple[int, int]:
    """Return height and width of the first frame after the rotation that the file asks for."""
    # Opened anew: probing has read this container to its end.
    with _opened(source) as container:
        frame = next(container.decode(container.streams[index]), None)
    if frame is None:
        raise Rejected("media.not-a-readable-video", "no frame can be decoded")
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


class FrameReader:
    """Frames of a file by index, upright, decoded by decord.

    Args:
        source: path or content of the file.
        count: frames that ``probe`` found.

    Raises:
        Rejected: if decord cannot open the file or finds another number of frames.
    """

    def __init__(self, source: PathOrBytes, count: int) -> None:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        file = _indexed(source)
        try:
            # Without a tolerance decord silently repeats a neighbour for every frame that it cannot
            # decode.
            self._reader = decord.VideoReader(file, num_threads=1, fault_tol=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise Rejected("media.not-a-readable-video", _first_line(error)) from error
        if len(self._reader) != count:
            raise Rejected(
                "media.truncated",
                f"{len(self._reader)} frames can be reached, the file has {count}",
            )

    def __getitem__(self, indices: NDArray[np.int64]) -> Frames:
        """Decode the frames at ``indices`` ``[n]`` to uint8 ``[n, H, W, 3]``.

        Raises:
            Rejected: if one of them cannot be decoded.
        """
        import decord

        try:
            frames: Frames = self._reader.get_batch(indices).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise Rejected("media.undecodable-frames", _first_line(error)) from error
        return frames


def _indexed(source: PathOrBytes) -> str | io.BytesIO:
    """Return a file that decord can seek in: the source, or its video track remuxed to Matroska."""
    with _opened(source) as container:
        if container.format.name in INDEXED:
            return io.BytesIO(source) if isinstance(source, bytes) else str(source)
        copy, (video, _) = io.BytesIO(), _tracks(container)
        with av.open(copy, "w", format="matroska") as out:
            stream = out.add_stream_from_template(video)
            for packet in container.demux(video):
                if packet.size:
                    packet.pts = packet.dts if packet.pts is None else packet.pts
                    packet.stream = stream
                    out.mux(packet)
    copy.seek(0)
    return copy


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][-200:]


def read_video(source: PathOrBytes) -> tuple[Frames, Times]:
    """Decode all frames of a file.

    Args:
        source: path or content of the file.

    Returns:
        Frames uint8 ``[T, H, W, 3]`` and their times in seconds on the file's clock ``[T]``.

    Raises:
        Rejected: if the file is not whole, or has no picture or no sound.
    """
    times = probe(source).times
    return FrameReader(source, len(times))[np.arange(len(times))], times


def read_audio(source: PathOrBytes, origin: float = 0.0) -> tuple[Samples, int]:
    """Decode the sound of a file and mix it to stereo.

    Mono goes to both sides. More channels are mixed after ITU-R BS.775, without LFE, and scaled so
    that nothing can clip. Silence fills gaps and the time from ``origin`` to the first sample. The
    whole track is held in memory: 1.4 GB for an hour at 48 kHz.

    Args:
        source: path or content of the file.
        origin: time on the file's clock, in seconds, of the first sample that is returned.

    Returns:
        Samples float32 ``[2, N]`` at the file's own rate, and that rate in Hz.

    Raises:
        Rejected: if there is no sound, or it cannot be decoded.
    """
    parts: list[Samples] = []
    with _opened(source) as container:
        if not container.streams.audio:
            raise Rejected("media.no-audio-track", "nothing to listen to")
        stream = container.streams.audio[0]
        planar, rate = av.AudioResampler(format="fltp"), stream.rate
        count = 0
        for decoded in container.decode(stream):
            for frame in planar.resample(decoded):
                due = count
                if frame.pts is not None:
                    due = round((float(frame.pts * frame.time_base) - origin) * rate)
                # Time stamps jitter by a container's rounding; only a jump is a gap or an overlap.
                # The first frame is always placed by its stamp: it says where the sound begins.
                lead = due - count if count == 0 or abs(due - count) > GAP * rate else 0
                part = _stereo(frame)[:, max(0, -lead) :]
                parts += [np.zeros((2, max(0, lead)), np.float32), part]
                count += max(0, lead) + part.shape[1]
    return np.concatenate(parts, 1) if parts else np.zeros((2, 0), np.float32), rate


def _stereo(frame: Any) -> Samples:
    """Mix a planar audio frame to float32 ``[2, N]``."""
    names = [channel.name for channel in frame.layout.channels]
    samples = frame.to_ndarray()
    if len(names) == 1:
        return np.repeat(samples, 2, 0)
    matrix = np.array([DOWNMIX.get(name, (_HALF, _HALF)) for name in names], np.float32).T
    # Scaled down by the louder side's total, and never up.
    mixed: Samples = (matrix / max(1.0, matrix.sum(1).max())) @ samples
    return mixed


def read_mp4(source: PathOrBytes) -> Pair[Any]:
    """Read back a file that ``write_mp4`` wrote.

    Args:
        source: path or content of the file.

    Returns:
        Frames uint8 ``[T, H, W, 3]`` at 24 fps and samples float32 ``[2, N]`` at 16 kHz.

    Raises:
        Rejected: if the file is not whole, or was not written by ``write_mp4``.
    """
    frames, times = read_video(source)
    samples, rate = read_audio(source)
    if rate != SAMPLE_RATE or np.abs(times - np.arange(len(times)) / FPS).max() > 1e-3:
        raise Rejected(
            "media.not-conformed",
            f"expected {FPS} fps from 0 s and {SAMPLE_RATE} Hz, found {rate} Hz and other times",
        )
    return Pair(frames, samples)


def encode_mp4(media: Pair[Any], crf: int) -> bytes:
    """Encode media as an mp4 with H.264 and FLAC; the same media give the same bytes.

    FLAC keeps 16-bit samples and their count exactly and starts at 0 without an edit list; AAC does
    neither.

    Args:
        media: frames uint8 ``[T, H, W, 3]`` at 24 fps and samples float32 ``[2, N]`` at 16 kHz.
        crf: x264's constant rate factor; lower is better.

    Returns:
        The content of the file.
    """
    frames, samples = np.asarray(media.video), np.asarray(media.audio)
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        video = _video_stream(container, frames.shape, crf)
        audio: Any = container.add_stream("flac", rate=SAMPLE_RATE, layout="stereo")
        audio.format = "s16"
        for index, rgb in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
            picture.pts, picture.time_base = index, Fraction(1, FPS)
            container.mux(video.encode(picture))
        whole = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
        sound = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(whole.T).reshape(1, -1), "s16", "stereo"
        )
        sound.rate, sound.pts, sound.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(sound))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return content.getvalue()


def _video_stream(container: Any, shape: tuple[int, ...], crf: int) -> Any:
    video = container.add_stream("libx264", rate=FPS)
    video.height, video.width, video.pix_fmt = shape[1], shape[2], "yuv420p"
    # One thread and no macroblock tree, so that bytes repeat: with the tree, x264 wrote other bytes
    # in 33 of 1200 runs at 32x32; without it, in none.
    video.options = {
        "crf": str(crf),
        "preset": "veryfast",
        "bf": "0",
        "mbtree": "0",
        "threads": "1",
    }
    return video


def write_mp4(path: Path, media: Pair[Any], *, crf: int = 14) -> None:
    """Write media to ``path`` as ``encode_mp4`` encodes them; players and ``read_mp4`` read it."""
    path.write_bytes(encode_mp4(media, crf))
