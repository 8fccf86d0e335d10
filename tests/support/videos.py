"""Videos of every kind, made on the spot: a white flash and a click at known times."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

FLASH = 0.1  # seconds that a flash stays


def picture(time, height, width, flashes):
    """White during a flash; else grey with a red top left and a green top right corner."""
    if any(flash - 1e-6 <= time < flash + FLASH for flash in flashes):
        return np.full((height, width, 3), 255, np.uint8)
    frame = np.full((height, width, 3), 60, np.uint8)
    frame[: height // 3, : width // 3] = 220, 20, 20
    frame[: height // 3, -(width // 3) :] = 20, 200, 20
    return frame


def sound(seconds, rate, channels, clicks):
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


def frame_times(seconds, fps, times):
    return (
        np.arange(round(seconds * float(fps))) / float(fps) if times is None else np.asarray(times)
    )


def write_video(
    path,
    seconds=2.0,
    fps=24,
    times=None,
    size=(64, 64),
    events=(),
    rate=16000,
    layout="stereo",
    audio="aac",
    samples=None,
    audio_start=0.0,
    codec="libx264",
    pixels="yuv420p",
    rotation=0,
    video=True,
    **options,
):
    """Write a video file. ``times`` overrides ``fps`` with the frames' own times; ``audio=None`` leaves the sound out."""
    with av.open(str(path), "w", options=options) as out:
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
            wave = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
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
def make_video(tmp_path):
    """``make_video(name, **how)`` writes a video below ``tmp_path`` and returns its path."""

    def make(name, **how):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        return write_video(tmp_path / name, **how)

    return make
