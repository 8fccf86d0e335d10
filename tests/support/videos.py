"""Videos of every kind, made on the spot: a white flash and a click at known times."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

MakeVideo = Callable[..., Path]
FLASH = 0.1  # seconds that a flash stays


def picture(time: float, height: int, width: int, flashes: Sequence[float]) -> np.ndarray:
    """White during a flash; else grey with a red top left and a green top right corner."""
    if any(flash - 1e-6 <= time < flash + FLASH for flash in flashes):
        return np.full((height, width, 3), 255, np.uint8)
    frame = np.full((height, width, 3), 60, np.uint8)
    frame[: height // 3, : width // 3] = 220, 20, 20
    frame[: height // 3, -(width // 3) :] = 20, 200, 20
    return frame


def sound(seconds: float, rate: int, channels: int, clicks: Sequence[float]) -> np.ndarray:
    """A short burst at each click, the same in all channels, float32 [channels, N]."""
    samples = np.zeros(round(seconds * rate), np.float32)
    for click in clicks:
        at = round(click * rate)
        burst = (
            0.8
            * np.exp(-np.arange(round(0.01 * rate)) / (0.002 * rate))
            * (-1.0) ** (np.arange(round(0.01 * rate)) // 4)
        )
        samples[at : at + len(burst)] += burst[: max(0, len(samples) - at)]
    return np.repeat(samples[None], channels, 0)


def frame_times(
    seconds: float, fps: float, times: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    return (
        np.arange(round(seconds * float(fps))) / float(fps) if times is None else np.asarray(times)
    )


def write_video(
    path: Path,
    seconds: float = 2.0,
    fps: float = 24,
    times: Sequence[float] | np.ndarray | None = None,
    size: tuple[int, int] = (64, 64),
    events: Sequence[float] = (),
    rate: int = 16000,
    layout: str = "stereo",
    audio: str | None = "aac",
    samples: np.ndarray | None = None,
    audio_start: float = 0.0,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rotation: int = 0,
    video: bool = True,
    **options: str,
) -> Path:
    """Write a video file. ``times`` overrides ``fps`` with the frames' own times.

    ``audio=None`` leaves the sound out.
    """
    with av.open(str(path), "w", options=options) as out:
        out.metadata["title"] = Path(path).name  # no two videos have the same bytes
        if video:
            stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = size[1], size[0], pixels
            base = Fraction(1, 90000) if times is not None else 1 / stream.codec_context.rate
            stream.codec_context.time_base = base
            if rotation:
                stream.set_display_rotation(rotation)
        if audio:
            heard = out.add_stream(audio, rate=rate, layout=layout)
            channels = heard.codec_context.layout.nb_channels
            samples = sound(seconds, rate, channels, events) if samples is None else samples
            # Packed: PyAV counts the planes of eight channels wrongly.
            packed = np.ascontiguousarray(samples.T).reshape(1, -1)
            wave = av.AudioFrame.from_ndarray(packed, "flt", layout)
            wave.rate, wave.pts, wave.time_base = rate, round(audio_start * rate), Fraction(1, rate)
        if video:
            for time in frame_times(seconds, fps, times):
                frame = av.VideoFrame.from_ndarray(picture(time, *size, events), "rgb24")
                frame.pts, frame.time_base = round(time / float(base)), base
                out.mux(stream.encode(frame))
        if audio:
            for piece in av.AudioResampler(heard.codec_context.format, layout, rate).resample(wave):
                out.mux(heard.encode(piece))
            out.mux(heard.encode(None))
        if video:
            out.mux(stream.encode(None))
    return Path(path)


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """``make_video(name, **how)`` writes a video below ``tmp_path`` and returns its path."""

    def make(name: str, **how: Any) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        return write_video(tmp_path / name, **how)

    return make
