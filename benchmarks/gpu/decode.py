"""Media from latents: LTX-2.0's decoders with random weights block by block, and the encoders that mux a stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.networks import DECODERS, kept, random_like, streaming_codec
from benchmarks.gpu.rows import Figures, Measurement, Wrong
from benchmarks.gpu.setup import Setup
from omniforcing.codec.codec import Codec
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Pair
from omniforcing.core.layout import FPS, LAYOUTS, clip_latents

BLOCKS, WARM = 8, 4  # blocks timed, after the first ones
ENOUGH_DB = 45.0  # below what 8 bits round


def measurements(setup: Setup) -> list[Measurement]:
    """Decoding as released and adapted, the kept codec against the CPU, then x264 and NVENC."""
    nvenc = "encode blocks with h264_nvenc"
    return [
        *(
            Measurement(
                f"{generation}, {way}",
                partial(decoder, setup, way == "causal", generation),
                "decode blocks of one second",
            )
            for generation in DECODERS
            for way in ("causal", "look-ahead")
        ),
        Measurement(
            "pocket codec", partial(pocket_codec, setup), "decode a clip on the card and on the CPU"
        ),
        Measurement(
            "mux, x264",
            partial(mux, setup),
            "encode and mux blocks of one second",
            packages=("av",),
        ),
        Measurement("mux, NVENC", partial(nvenc_encode, setup), nvenc, cuda=True, packages=("av",)),
    ]


def decoder(setup: Setup, causal: bool, generation: str) -> Figures:
    """Milliseconds of a block of one second, picture and sound together, until both lie in the CPU's memory."""
    codec = streaming_codec(setup, causal, generation)
    grid, table = codec.token_grid(codec.height, codec.width), LAYOUTS["prefix"]
    stream = StreamingDecoder(codec, grid)
    times, frames = [], 0
    if setup.cuda:
        torch.cuda.reset_peak_memory_stats()
    for index in range(WARM + BLOCKS):
        counts = table.counts(index)
        video = random_like(
            (1, counts.video, grid[0] * grid[1], codec.video_channels), setup, index
        )
        block = Pair(video, random_like((1, counts.audio, codec.audio_channels), setup, index))
        began = _now(setup)
        media = stream.push(block)
        media.map(lambda x: x.cpu())
        if index >= WARM:
            times.append(_now(setup) - began)
            frames += media.video.shape[1]
    milliseconds = 1000 * np.array(times)
    found: Figures = {
        "block_p50_ms": float(np.percentile(milliseconds, 50)),
        "block_p95_ms": float(np.percentile(milliseconds, 95)),
        "fps": frames / (milliseconds.sum() / 1000),
        "size": f"{codec.width}x{codec.height}",
        "dtype": str(codec.video_vae.dtype).removeprefix("torch."),
        "latents_ahead": codec.video_reach.ahead,
    }
    return {**found, **({"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if setup.cuda else {})}


def pocket_codec(setup: Setup) -> Figures:
    """A clip of random latents through the kept codec on the device and on the CPU: PSNR of the picture, error of the sound.

    Raises:
        Wrong: if the pictures differ by more than 8 bits round.
    """
    codec = Codec.load(kept("codec"))
    grid = codec.token_grid(codec.height, codec.width)
    counts = clip_latents(1 if setup.small else 4)
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(
        1, counts.video, grid[0] * grid[1], codec.video_channels, generator=generator
    )
    latents = Pair(video, torch.randn(1, counts.audio, codec.audio_channels, generator=generator))
    here = codec.decode(latents, grid)
    card = Codec.load(kept("codec"), device=setup.device)
    there = card.decode(latents.to(setup.device), grid).map(torch.Tensor.cpu)
    error = float((here.video.double() - there.video.double()).square().mean())
    sound = float((here.audio - there.audio).abs().max() / here.audio.abs().max())
    found: Figures = {
        "picture_psnr_db": 10 * np.log10(255**2 / error) if error else 99.0,
        "sound_error": sound,
    }
    if not found["picture_psnr_db"] >= ENOUGH_DB:
        raise Wrong(found, f"the picture is below {ENOUGH_DB:g} dB of the CPU's")
    return found


def mux(setup: Setup) -> Figures:
    """Milliseconds to encode and mux a block of one second, one thread of x264."""
    from omniforcing.media.mux import Muxer, OutputBuffer

    height, width, rate = _size(setup)
    muxer = Muxer(OutputBuffer(), height, width, rate)
    sound = np.random.default_rng(0).standard_normal((2, rate)).astype(np.float32) / 10
    return _encoder_figures(lambda frames: muxer.write(frames, sound), height, width)


def nvenc_encode(setup: Setup) -> Figures:
    """Milliseconds to encode a block of one second with the card's own encoder, frames from the CPU's memory."""
    import av

    height, width, _ = _size(setup)
    try:
        encoder = av.CodecContext.create("h264_nvenc", "w")
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, FPS), Fraction(FPS)
        encoder.options = {"preset": "p1", "tune": "ull"}
        encoder.open()
    except (av.FFmpegError, ValueError, OSError) as error:
        raise OmniForcingError(
            "benchmarks.no-nvenc",
            f"PyAV {av.__version__} cannot open the encoder h264_nvenc ({error}); "
            "install a PyAV that is built with NVENC",
        ) from error

    def encode(frames: np.ndarray) -> None:
        for image in frames:
            encoder.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))

    return _encoder_figures(encode, height, width)


def _size(setup: Setup) -> tuple[int, int, int]:
    return (64, 64, 16_000) if setup.small else (512, 768, 24_000)


def _encoder_figures(encode: Callable[[np.ndarray], object], height: int, width: int) -> Figures:
    times, seconds = [], [_picture(second, height, width) for second in range(2)]
    for index in range(WARM + BLOCKS):
        began = time.perf_counter()
        encode(seconds[index % 2])
        if index >= WARM:
            times.append(1000 * (time.perf_counter() - began))
    p50 = float(np.median(times))
    return {"mux_p50_ms": p50, "fps": 1000 * FPS / p50, "size": f"{width}x{height}"}


def _picture(second: int, height: int, width: int) -> np.ndarray:
    """A second of soft shapes that drift, with a little grain: uint8 ``[24, H, W, 3]``."""
    rows, columns = np.mgrid[:height, :width] / height
    random = np.random.default_rng(second)
    frames = []
    for frame in range(FPS):
        shift = (second * FPS + frame) / 40
        waves = [
            np.sin(6 * rows + shift * (c + 1)) + np.cos(5 * columns - shift * (2 - c))
            for c in range(3)
        ]
        grain = random.standard_normal((height, width, 1)) * 2
        frames.append(np.clip(128 + 55 * np.stack(waves, -1) + grain, 0, 255).astype(np.uint8))
    return np.stack(frames)


def _now(setup: Setup) -> float:
    if setup.cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
