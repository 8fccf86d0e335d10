"""The 19B student's stream as a viewer gets it: frames and samples, by the product's own threads.

Decoding overlaps generation. The first stream of the process warms up, and `cold_ttfc_s` is its
time to the first frame that moves; all other figures are the second stream's.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from benchmarks.gpu.bench import best_options, in_layout, open_bench, switched
from benchmarks.gpu.networks import streaming_codec, student_case
from benchmarks.gpu.rows import Figures
from benchmarks.gpu.settings import PartSettings
from benchmarks.student.bench import StudentBench
from omniforcing.codec.codec import Codec
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.core.latents import TextFeatures
from omniforcing.core.layout import FPS
from omniforcing.evaluation.speed import stalls, stream_speed
from omniforcing.model.rollout import Rollout
from omniforcing.streaming.decoding import Decoding
from omniforcing.streaming.generation import Generation
from omniforcing.streaming.live import Chunk, Stream, StreamParts


def decoded(settings: PartSettings, causal: bool, layout: str) -> Figures:
    """Stream frames and samples.

    Args:
        settings: of the part.
        causal: whether the video decoder is adapted to a causal one; else it looks ahead.
        layout: name of the block table.
    """
    case = in_layout(student_case(settings), layout)
    # Recording CUDA graphs would take most of a short stream.
    options = replace(best_options(settings), compiled=False)
    bench, remark = open_bench(settings, case, options, release=True)
    codec = streaming_codec(settings, causal)
    cold = stream_chunks(bench, codec, 2.0)
    chunks = stream_chunks(bench, codec, 3.0 if settings.small else 12.0)
    timings = [chunk.timing for chunk in chunks]
    speed = stream_speed(timings)
    steady = timings[1:] or timings
    return {
        "fps": speed.fps,
        "first_s": timings[0].elapsed,
        "ttfc_s": seconds_until_moving(chunks, sound=False),
        "picture_and_sound_s": seconds_until_moving(chunks, sound=True),
        "cold_ttfc_s": seconds_until_moving(cold, sound=False),
        "block_p50_ms": 1000 * speed.block_p50_s,
        "block_p95_ms": 1000 * speed.block_p95_s,
        "decode_ms": 1000 * float(np.median([timing.decode for timing in steady])),
        "stalls": stalls(timings),
        "latents_ahead": codec.video_reach.ahead,
        "blocks": len(chunks),
        "on": switched(options),
        **remark,
    }


def stream_chunks(bench: StudentBench, codec: Codec, seconds: float) -> list[Chunk]:
    """Stream through the product's threads; its clock starts with the prompt's features."""
    case = bench.case
    limits = round(FPS * seconds) + 1, round(codec.sample_rate * seconds)

    def rollout(text: TextFeatures) -> Rollout:
        return Rollout(bench.student, text, case.rollout, bench.noise(), bench.options)

    asked = time.perf_counter()
    parts = StreamParts(
        generation=Generation(rollout, bench.prompt()),
        decoding=Decoding(StreamingDecoder(codec, case.rollout.grid), limits),
        encode=lambda _: bench.prompt(),
        table=case.rollout.table,
        stop=case.rollout.table.blocks_for_seconds(seconds),
        frames=limits[0],
        prompt="of random features",
        seed=0,
        artifact="",
        device=bench.device.type,
        asked=asked,
    )
    with Stream(parts) as stream:
        return list(stream)


def seconds_until_moving(chunks: list[Chunk], *, sound: bool) -> float:
    """Return the seconds until a second frame is there, and with ``sound`` samples too."""
    frames = samples = 0
    for chunk in chunks:
        frames += len(chunk.frames)
        samples += chunk.samples.shape[1]
        if frames > 1 and (samples or not sound):
            return float(chunk.timing.elapsed)
    return float("inf")
