"""Stream an artifact for minutes: does it keep up, stay flat, and stay in sync to the end?

`python -m benchmarks.streaming --artifact data/pocket/artifact --seconds 600 --json` writes a file
and measures it. First and last mean the first and last minute, or tenth of a stream that is shorter
than ten minutes. Blocks are timed while the block before is encoded, as they are for a viewer.

    ttfc_s                        request to the first block that moves
    realtime_factor               seconds of media per second
    block_p95_ratio               p95 of a block's time, last over first
    memory_ratio                  largest memory of the process, last over first
    av_offset_ms                  largest distance of the stamps of sound and picture
    stalls                        waits of a viewer
    sync_f1_first, sync_f1_last   F1 of impacts seen and heard
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.timing import resident_bytes
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS
from omniforcing.evaluation.speed import BlockTiming, block_seconds, stalls
from omniforcing.media.mel import resample
from omniforcing.pocket.events import detect_audio_events, detect_video_events
from omniforcing.pocket.sync import match
from omniforcing.streaming.command import write_stream
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.live import Chunk, Stream

TOLERANCE = 0.080  # seconds


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--artifact", type=Path, required=True, help="folder that the export stage wrote"
    )
    parser.add_argument(
        "--seconds", type=int, default=600, help="length of the stream (default: 600)"
    )
    parser.add_argument(
        "--prompt", default="a red ball bounces high on the floor", help="what to show and hear"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the stream (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    arguments = parser.parse_args()

    def run() -> None:
        if arguments.seconds < 20:
            raise OmniForcingError(
                "option.out-of-range",
                f"--seconds is {arguments.seconds}; first and last tenth are compared, "
                "so give 20 or more",
            )
        torch.set_num_threads(arguments.threads)
        figures = measure(
            Engine(arguments.artifact, arguments.device),
            arguments.prompt,
            arguments.seconds,
            arguments.seed,
        )
        print(
            json.dumps(figures)
            if arguments.json
            else "\n".join(f"{name:<18}{value:.3f}" for name, value in figures.items())
        )

    sys.exit(run_command(run))


def measure(engine: Engine, prompt: str, seconds: int, seed: int) -> dict[str, float]:
    """Stream to a temporary file and measure the stream and the file."""
    part = min(60, seconds // 10)
    memory: list[int] = []
    timings: list[BlockTiming] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "stream.mp4")
        began = time.perf_counter()
        write_stream(
            _watched(engine.stream(prompt, seconds, seed), memory, timings), file, engine.settings
        )
        wall = time.perf_counter() - began
        first, last = (_event_f1(file, start, part) for start in (0, seconds - part))
        offset = 1000 * stamp_offset(file)
    per_part = round(part * len(timings) / seconds)
    taken = block_seconds(timings)[1:]  # the first block pays for what is made once
    moving = next((timing for timing in timings if timing.frames > 1), timings[-1])
    return {
        "ttfc_s": moving.elapsed,
        "realtime_factor": seconds / wall,
        "block_p95_ratio": float(
            np.percentile(taken[-per_part:], 95) / np.percentile(taken[:per_part], 95)
        ),
        "memory_ratio": max(memory[-per_part:]) / max(memory[:per_part]),
        "av_offset_ms": offset,
        "stalls": stalls(timings),
        "sync_f1_first": first,
        "sync_f1_last": last,
    }


def _watched(stream: Stream, memory: list[int], timings: list[BlockTiming]) -> Iterator[Chunk]:
    """Pass chunks on; append the process's bytes and the block's timing for each."""
    for chunk in tqdm(stream, "streaming", stream.blocks, file=sys.stderr):
        yield chunk
        memory.append(resident_bytes())
        timings.append(chunk.timing)


def stamp_offset(file: Path) -> float:
    """Return the largest distance of the time stamps of sound and picture, in seconds.

    Compared at every second of the media.
    """
    seen = [float(frame.pts * frame.time_base) for frame in _decoded(file, "video", 0)]
    stamps, counts = [], [0]
    for frame in _decoded(file, "audio", 0):
        stamps.append(float(frame.pts * frame.time_base))
        counts.append(counts[-1] + frame.samples)
        rate = frame.sample_rate
    heard = np.interp(np.arange(len(seen) // FPS) * rate, counts[:-1], stamps)
    return float(np.abs(np.array(seen[: len(heard) * FPS : FPS]) - heard).max())


def _decoded(file: Path, kind: str, start: float) -> Iterator[Any]:
    """Frames of a track from ``start`` seconds on, or a little before."""
    with av.open(str(file)) as container:
        if start:
            container.seek(int((start - 1) * 1_000_000))
        yield from container.decode(**{kind: 0})


def _event_f1(file: Path, start: float, seconds: float) -> float:
    """F1 of impacts seen and impacts heard within the tolerance, in a part of the file."""
    frames, samples = [], []
    for frame in _decoded(file, "video", start):
        if (at := float(frame.pts * frame.time_base)) >= start + seconds:
            break
        if at >= start - 1e-6:
            frames.append(frame.to_ndarray(format="rgb24"))
    for frame in _decoded(file, "audio", start):
        first = round(float(frame.pts * frame.time_base - start) * (rate := frame.sample_rate))
        if first >= seconds * rate:
            break
        samples.append(frame.to_ndarray()[:, max(0, -first) :])
    sound = resample(torch.from_numpy(np.concatenate(samples, 1)), rate)
    seen = detect_video_events(np.stack(frames)).impacts
    heard = detect_audio_events(sound.numpy()).impacts
    return 2 * len(match(seen, heard, TOLERANCE)) / max(1, len(seen) + len(heard))


if __name__ == "__main__":
    main()
