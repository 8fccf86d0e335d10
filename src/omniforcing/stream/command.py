"""``omniforcing stream``: a prompt in, an MP4 out, block by block, and how fast it came."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniforcing.errors import OmniForcingError

if TYPE_CHECKING:
    from omniforcing.stream.artifact import StreamSettings
    from omniforcing.stream.engine import Chunk
    from omniforcing.stream.speed import StreamSpeed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``omniforcing stream``."""
    parser.add_argument("--artifact", type=Path, required=True, help="folder that the export stage wrote")
    parser.add_argument("--prompt", required=True, help="what to show and hear")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the clip (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same clip (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="the MP4 to write; one that exists is replaced at the end")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1; more only help larger models)")
    parser.add_argument("--no-verify", action="store_true", help="skip the artifact's checksums")
    parser.add_argument("--json", action="store_true", help="print the figures as json on standard output")


def check_target(path: Path) -> None:
    """Refuse a target that a clip must not or cannot replace.

    Raises:
        OmniForcingError: if it is not named ``.mp4``, is a folder, or its folder does not exist.
    """
    if path.suffix.lower() != ".mp4":
        raise OmniForcingError(f"{path} does not end in .mp4, the only format that is written; rename it in --out")
    if path.is_dir():
        raise OmniForcingError(f"{path} is a folder; name a file in --out")
    if not path.parent.is_dir():
        raise OmniForcingError(f"the folder {path.parent} does not exist; make it or choose another --out")


def write_stream(chunks: Iterable[Chunk], out: Path, settings: StreamSettings) -> StreamSpeed:
    """Encode a stream into an MP4 that appears when it is whole.

    Raises:
        OmniForcingError: if the file cannot be written.
    """
    from omniforcing.stream.mux import Muxer
    from omniforcing.stream.newfile import new_file
    from omniforcing.stream.speed import stream_speed

    timings = []
    with new_file(out) as file, Muxer(file, settings.height, settings.width) as muxer:
        for chunk in chunks:
            muxer.write(chunk.frames, chunk.samples)
            timings.append(chunk.timing)
    return stream_speed(timings)


def figures(speed: StreamSpeed, settings: StreamSettings, device: str) -> dict[str, Any]:
    """All that a speed means something with: the figures, the size, the steps, the window and the machine's part."""
    import torch

    return {
        **dataclasses.asdict(speed),
        "width": settings.width,
        "height": settings.height,
        "steps": len(settings.sigmas),
        "window": settings.window,
        "device": device,
        "threads": torch.get_num_threads(),
    }


def speed_line(values: dict[str, Any]) -> str:
    """One line for people."""
    return (
        "first chunk after {ttfc_s:.2f} s, blocks {block_p50_s:.2f} s (p95 {block_p95_s:.2f} s), "
        "real-time factor {real_time_factor:.2f}, {fps:.1f} FPS, decoding included | "
        "{width}x{height}, {steps} steps, window {window}, {device}, {threads} threads"
    ).format(**values)


def _with_progress(chunks: Iterator[Chunk], frames: int | None) -> Iterator[Chunk]:
    from tqdm import tqdm

    with tqdm(total=frames, unit="frame", desc="streaming", file=sys.stderr) as bar:
        for chunk in chunks:
            yield chunk
            bar.set_postfix(block=chunk.block, refresh=False)
            bar.update(len(chunk.frames))


def _prepare(device: str, threads: int) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar is enough: ours
    if threads < 1:
        raise OmniForcingError(f"--threads is {threads}; the least is 1")
    torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OmniForcingError(f"--device {device} does not work here: {str(error).splitlines()[0]}") from error


def run(args: argparse.Namespace) -> int:
    """Stream one clip as the parsed arguments say; returns 0.

    Raises:
        OmniForcingError: for anything in the arguments or the artifact that the user can mend.
    """
    from omniforcing.stream.artifact import Artifact
    from omniforcing.stream.request import Request

    request = Request(args.prompt, args.seconds, args.seed)
    check_target(args.out)
    artifact = Artifact.open(args.artifact, verify=not args.no_verify)
    _prepare(args.device, args.threads)

    from omniforcing.stream.engine import Engine

    chunks = Engine(artifact, args.device).stream(request.prompt, request.seconds, request.seed)
    speed = write_stream(_with_progress(chunks, request.frames), args.out, artifact.settings)
    values = figures(speed, artifact.settings, args.device)
    print(json.dumps({"out": str(args.out), **values}) if args.json else f"{args.out}: {speed_line(values)}")
    return 0
