"""Read and write the project's own video files: conformed clips, samples and pictures of runs.

They hold H.264 with BT.709 colours, all tagged, and FLAC. decord reads their frames, where it is
exact and fast; ``pictures`` and ``sound`` read the files of others.

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

from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.core.pair import Media, Pair
from omniforcing.media.bt709 import X264_PARAMS, Bt709
from omniforcing.media.reading.sound import read_sound
from omniforcing.media.reading.tracks import PathOrBytes, Rejected, read_tracks

Frames = NDArray[np.uint8]
TIME_SLACK = 1e-3  # seconds by which frames may be off the grid of 24 fps


def read_mp4(source: PathOrBytes) -> Media:
    """Read back a file that ``write_mp4`` wrote.

    Args:
        source: path or content of the file.

    Returns:
        Frames uint8 ``[T, H, W, 3]`` at 24 fps and samples float32 ``[2, N]`` at 16 kHz.

    Raises:
        Rejected: if the file is not whole, or was not written by ``write_mp4``.
    """
    tracks = read_tracks(source)
    times = tracks.times
    if times is None or np.abs(times - np.arange(len(times)) / FPS).max() > TIME_SLACK:
        raise Rejected("media.not-conformed", f"its frames are not at {FPS} fps from 0 s")
    frames = _read_frames(source, len(times))
    sound = read_sound(source, tracks=(tracks.video_index, tracks.audio_index))
    if sound.damaged:
        raise Rejected("media.undecodable-sound", "a part of the sound is damaged")
    return Pair(frames, sound.samples)


def _read_frames(source: PathOrBytes, count: int) -> Frames:
    """Decode all frames ``[count, H, W, 3]`` by decord."""
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        # Without a tolerance decord silently repeats a neighbour for every frame that it cannot
        # decode.
        reader = decord.VideoReader(file, num_threads=1, fault_tol=1)
        if len(reader) != count:
            raise Rejected(
                "media.truncated", f"{len(reader)} frames can be reached, the file has {count}"
            )
        frames: Frames = reader.get_batch(np.arange(count)).asnumpy()
    # What decord raises has no common base: some errors are not DECORDErrors.
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
        line = str(error).strip().splitlines()[-1][-200:]
        raise Rejected("media.undecodable-frames", line) from error
    return frames


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
        convert = Bt709()
        for index, rgb in enumerate(frames):
            picture = convert(rgb)
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
    Bt709.tag(video.codec_context)
    # One thread and no macroblock tree, so that bytes repeat: with the tree, x264 wrote other bytes
    # in 33 of 1200 runs at 32x32; without it, in none.
    video.options = {
        "crf": str(crf),
        "preset": "veryfast",
        "bf": "0",
        "mbtree": "0",
        "threads": "1",
        "x264-params": X264_PARAMS,
    }
    return video


def write_mp4(path: Path, media: Media, *, crf: int = 14) -> None:
    """Write media to ``path`` as ``encode_mp4`` encodes them; players and ``read_mp4`` read it."""
    path.write_bytes(encode_mp4(media, crf))
