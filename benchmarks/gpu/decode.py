"""Media from latents: decoders with random weights, and the encoders that mux a stream.

Figures of a block of one second: `block_p50_ms` and `block_p95_ms` to decode it, `mux_p50_ms` to
encode it, `fps` that follow, `latents_ahead` the decoder's look-ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.networks import DECODERS, kept_folder, random_tensor, streaming_codec
from benchmarks.gpu.rows import Figures, Measurement, OutOfBounds
from benchmarks.gpu.settings import PartSettings
from benchmarks.timing import seconds_of
from omniforcing.codec.codec import Codec
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents
from omniforcing.core.layout import FPS, LAYOUTS, clip_latents
from omniforcing.core.pair import Pair

WARM_UP, BLOCKS = 4, 8  # blocks: first ones, and those that are timed
ENOUGH_DB = 45.0  # 8 bits round more away than a difference at this PSNR


def measurements(settings: PartSettings) -> list[Measurement]:
    """List decoding as adapted and as released, the kept codec against the CPU, x264 and NVENC."""
    rows = []
    for generation in DECODERS:
        for way in ("causal", "look-ahead"):
            decode = partial(decode_blocks, settings, way == "causal", generation)
            rows.append(Measurement(f"{generation}, {way}", decode, "decode blocks of one second"))
    return [
        *rows,
        Measurement(
            "pocket codec",
            partial(pocket_codec, settings),
            "decode a clip on the card and on the CPU",
        ),
        Measurement(
            "mux, x264",
            partial(mux_x264, settings),
            "encode and mux blocks of one second",
            packages=("av",),
        ),
        Measurement(
            "mux, NVENC",
            partial(encode_nvenc, settings),
            "encode blocks with h264_nvenc",
            cuda=True,
            packages=("av",),
        ),
    ]


def decode_blocks(settings: PartSettings, causal: bool, generation: str) -> Figures:
    """Decode blocks of one second, picture and sound, until both are in the CPU's memory.

    Args:
        settings: of the part.
        causal: whether the video decoder is adapted to a causal one; else it looks ahead.
        generation: of the video decoder.
    """
    codec = streaming_codec(settings, causal, generation)
    grid, table = codec.token_grid(codec.height, codec.width), LAYOUTS["prefix"]
    decoder = StreamingDecoder(codec, grid)
    if settings.cuda:
        torch.cuda.reset_peak_memory_stats()
    frames = 0

    def decode(latents: Latents) -> None:
        nonlocal frames
        media = decoder.push(latents).map(lambda tensor: tensor.cpu())
        frames = media.video.shape[1]

    times, timed_frames = [], 0
    for index in range(WARM_UP + BLOCKS):
        counts = table.counts(index)
        video_shape = (1, counts.video, grid[0] * grid[1], codec.video_channels)
        audio_shape = (1, counts.audio, codec.audio_channels)
        latents = Pair(
            random_tensor(video_shape, settings, index), random_tensor(audio_shape, settings, index)
        )
        seconds = seconds_of(partial(decode, latents), settings.torch_device)
        if index >= WARM_UP:
            times.append(seconds)
            timed_frames += frames
    figures: Figures = {
        "block_p50_ms": 1000 * float(np.percentile(times, 50)),
        "block_p95_ms": 1000 * float(np.percentile(times, 95)),
        "fps": timed_frames / sum(times),
        "size": f"{codec.width}x{codec.height}",
        "dtype": str(codec.video_vae.dtype).removeprefix("torch."),
        "latents_ahead": codec.video_reach.ahead,
    }
    if settings.cuda:
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def pocket_codec(settings: PartSettings) -> Figures:
    """Decode a clip of random latents with the kept codec on the device and on the CPU.

    Returns:
        PSNR of the pictures; largest error of the sound over its largest sample.

    Raises:
        OutOfBounds: if the pictures differ by more than 8 bits round away.
    """
    codec = Codec.load(kept_folder("codec"))
    grid = codec.token_grid(codec.height, codec.width)
    counts = clip_latents(1 if settings.small else 4)
    generator = torch.Generator().manual_seed(0)
    video_shape = (1, counts.video, grid[0] * grid[1], codec.video_channels)
    video = torch.randn(video_shape, generator=generator)
    audio = torch.randn(1, counts.audio, codec.audio_channels, generator=generator)
    latents = Pair(video, audio)
    expected = codec.decode(latents, grid)
    on_device = Codec.load(kept_folder("codec"), device=settings.device)
    decoded = on_device.decode(latents.to(settings.device), grid).map(torch.Tensor.cpu)
    error = float((expected.video.double() - decoded.video.double()).square().mean())
    loudest = expected.audio.abs().max()
    figures: Figures = {
        "picture_psnr_db": 10 * np.log10(255**2 / error) if error else 99.0,
        "sound_error": float((expected.audio - decoded.audio).abs().max() / loudest),
    }
    if not figures["picture_psnr_db"] >= ENOUGH_DB:
        raise OutOfBounds(figures, f"the picture is below {ENOUGH_DB:g} dB of the CPU's")
    return figures


def mux_x264(settings: PartSettings) -> Figures:
    """Encode and mux blocks of one second with one thread of x264."""
    from omniforcing.media.mux import Muxer, OutputBuffer

    height, width, rate = _size(settings)
    muxer = Muxer(OutputBuffer(), height, width, rate)
    sound = np.random.default_rng(0).standard_normal((2, rate)).astype(np.float32) / 10
    return encoder_figures(lambda frames: muxer.write(frames, sound), height, width)


def encode_nvenc(settings: PartSettings) -> Figures:
    """Encode blocks of one second with the card's own encoder, frames from the CPU's memory.

    Raises:
        OmniForcingError: if PyAV cannot open the encoder.
    """
    import av

    height, width, _ = _size(settings)
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

    return encoder_figures(encode, height, width)


def _size(settings: PartSettings) -> tuple[int, int, int]:
    """Return height and width (pixels) and the sample rate."""
    return (64, 64, 16_000) if settings.small else (512, 768, 24_000)


def encoder_figures(encode: Callable[[np.ndarray], object], height: int, width: int) -> Figures:
    """Time an encoder on blocks of one second, after some that warm up."""
    blocks = [moving_shapes(second, height, width) for second in range(2)]
    times = []
    for index in range(WARM_UP + BLOCKS):
        block = blocks[index % 2]
        seconds = seconds_of(partial(encode, block), torch.device("cpu"))
        if index >= WARM_UP:
            times.append(1000 * seconds)
    p50 = float(np.median(times))
    return {"mux_p50_ms": p50, "fps": 1000 * FPS / p50, "size": f"{width}x{height}"}


def moving_shapes(second: int, height: int, width: int) -> np.ndarray:
    """Draw a second of soft shapes that drift, with a little grain: uint8 ``[24, H, W, 3]``.

    Encoders take longest for noise and shortest for a still; real pictures lie between.
    """
    rows, columns = np.mgrid[:height, :width] / height
    random = np.random.default_rng(second)
    frames = []
    for frame in range(FPS):
        shift = (second * FPS + frame) / 40
        channels = []
        for c in range(3):
            wave = np.sin(6 * rows + shift * (c + 1)) + np.cos(5 * columns - shift * (2 - c))
            channels.append(wave)
        grain = random.standard_normal((height, width, 1)) * 2
        image = 128 + 55 * np.stack(channels, -1) + grain
        frames.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(frames)
