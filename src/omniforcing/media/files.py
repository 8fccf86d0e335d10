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
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from omniforcing.core.latents import Media, Pair
from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.media.probe import (
    PathOrBytes,
    Rejected,
    Times,
    find_tracks,
    open_container,
    probe,
)

Frames = NDArray[np.uint8]
Samples = NDArray[np.float32]

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
    with open_container(source) as container:
        if container.format.name in INDEXED:
            return io.BytesIO(source) if isinstance(source, bytes) else str(source)
        copy, (video, _) = io.BytesIO(), find_tracks(container)
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
    with open_container(source) as container:
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


def read_mp4(source: PathOrBytes) -> Media:
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


def encode_mp4(media: Media, crf: int) -> bytes:
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


def write_mp4(path: Path, media: Media, *, crf: int = 14) -> None:
    """Write media to ``path`` as ``encode_mp4`` encodes them; players and ``read_mp4`` read it."""
    path.write_bytes(encode_mp4(media, crf))
