"""What tests do with streams: their media in one piece, opening images, and waiting for a
condition.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from omniforcing.media.mux import Muxer, OutputBuffer
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.live import Chunk

PROMPT, OTHER_PROMPT = "a red ball bounces", "a blue ball rolls"


def media_of(chunks: list[Chunk]) -> tuple[np.ndarray, np.ndarray]:
    """Frames and samples of all chunks."""
    frames = np.concatenate([chunk.frames for chunk in chunks])
    return frames, np.concatenate([chunk.samples for chunk in chunks], 1)


def same_media(one: list[Chunk], other: list[Chunk]) -> bool:
    """Whether two streams show and sound the same, bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(media_of(one), media_of(other), strict=True))


def file_of(engine: Engine, seconds: float, seed: int) -> bytes:
    """What a server sends of a stream: the bytes of its MP4."""
    sink, settings = OutputBuffer(), engine.settings
    size = (settings.height, settings.width)
    with (
        Muxer(sink, *size, settings.sample_rate, mark=engine.mark) as muxer,
        engine.stream(PROMPT, seconds, seed) as stream,
    ):
        for chunk in stream:
            muxer.add(chunk)
    return sink.take()


def settled(condition: Callable[[], object], seconds: float = 10) -> bool:
    """Whether ``condition()`` comes true in time."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(condition())


def image_file(kind: str = "PNG", size: tuple[int, int] = (100, 64)) -> bytes:
    """Bytes of an image file of random pixels; ``size`` is width, height."""
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()
