"""``omniforcing stream``: a prompt in, an MP4 out, block by block, and how fast it came."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, BinaryIO

from omniforcing.core.errors import OmniForcingError

if TYPE_CHECKING:
    from omniforcing.evaluation.speed import StreamSpeed
    from omniforcing.streaming.artifact import StreamSettings
    from omniforcing.streaming.engine import Engine
    from omniforcing.streaming.live import Chunk, Stream


STDOUT = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``omniforcing stream``."""
    add_engine_arguments(parser)
    parser.add_argument(
        "--prompt",
        help="what to show and hear; with --resume, that of the saved stream if left out",
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="length of the clip (default: 8)"
    )
    parser.add_argument(
        "--endless", action="store_true", help="go on until Ctrl-C, which ends the clip properly"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same clip (default: 0)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the MP4 to write, replaced when it is whole; - for a player",
    )
    changes = parser.add_argument_group("changes on the way")
    changes.add_argument(
        "--then",
        nargs=2,
        action="append",
        default=[],
        metavar=("SECONDS", "PROMPT"),
        help="another prompt",
    )
    changes.add_argument(
        "--rewrite",
        action="store_true",
        help="also write anew what the student remembers: sharper changes",
    )
    parser.add_argument("--image", type=Path, help="begin with this picture (PNG, JPEG or WebP)")
    parser.add_argument(
        "--continue",
        type=Path,
        dest="clip",
        help="go on from this clip, an MP4 of the stream's size",
    )
    parser.add_argument(
        "--save", type=Path, help="write the stream's state at its end to this file"
    )
    parser.add_argument("--resume", type=Path, help="go on for --seconds where a stream was saved")
    parser.add_argument(
        "--json", action="store_true", help="print the figures as json on standard output"
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what every command that loads an artifact needs."""
    parser.add_argument(
        "--artifact", type=Path, required=True, help="folder that the export stage wrote"
    )
    parser.add_argument(
        "--device", default="cpu", help="where to compute: cpu (default), cuda, cuda:1, ..."
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads (default: 1; more only help larger models)",
    )
    parser.add_argument(
        "--speed-ups",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of the student: compiled (the first blocks wait for it), merged; on a GPU also concurrent, fp8 (coarser)",
    )
    parser.add_argument("--no-verify", action="store_true", help="skip the artifact's checksums")


def check_target(path: Path) -> None:
    """Refuse a target that a clip must not or cannot replace.

    Raises:
        OmniForcingError: if it is not named ``.mp4``, is a folder, or its folder does not exist.
    """
    if path == STDOUT:
        return
    if path.suffix.lower() != ".mp4":
        raise OmniForcingError(
            "option.malformed",
            f"{path} does not end in .mp4, the only format that is written; rename it in --out",
        )
    if path.is_dir():
        raise OmniForcingError("file.is-a-folder", f"{path} is a folder; name a file in --out")
    if not path.parent.is_dir():
        raise OmniForcingError(
            "file.no-folder",
            f"the folder {path.parent} does not exist; make it or choose another --out",
        )


def write_stream(chunks: Iterable[Chunk], out: Path, settings: StreamSettings) -> StreamSpeed:
    """Encode a stream into an MP4 that appears when it is whole, or onto standard output, block by block, for ``-``.

    Raises:
        OmniForcingError: if the file cannot be written.
    """
    from omniforcing.core.files import new_file

    if out == STDOUT:
        return _encode(chunks, sys.stdout.buffer, settings)
    with new_file(out) as file:
        return _encode(chunks, file, settings)


def _encode(chunks: Iterable[Chunk], file: BinaryIO, settings: StreamSettings) -> StreamSpeed:
    from omniforcing.evaluation.speed import stream_speed
    from omniforcing.media.mux import Muxer

    timings = []
    try:
        with Muxer(file, settings.height, settings.width, settings.sample_rate) as muxer:
            for chunk in chunks:
                muxer.add(chunk)
                file.flush()
                timings.append(chunk.timing)
    except BrokenPipeError:
        # The player was closed, which is how one stops watching. Python would complain at exit about what it cannot write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    return stream_speed(timings)


def figures(
    speed: StreamSpeed, settings: StreamSettings, device: str, speed_ups: Sequence[str] = ()
) -> dict[str, Any]:
    """All that a speed means something with: the figures, the size, the steps, the window, switches and the machine's part."""
    import torch

    return {
        **dataclasses.asdict(speed),
        "width": settings.width,
        "height": settings.height,
        "steps": len(settings.sigmas),
        "window": settings.window,
        "device": device,
        "threads": torch.get_num_threads(),
        "speed_ups": list(speed_ups),
    }


def speed_line(values: dict[str, Any]) -> str:
    """One line for people."""
    return (
        "first chunk after {ttfc_s:.2f} s, blocks {block_p50_s:.2f} s (p95 {block_p95_s:.2f} s), "
        "real-time factor {real_time_factor:.2f}, {fps:.1f} FPS, decoding included | "
        "{width}x{height}, {steps} steps, window {window}, {device}, {threads} threads"
    ).format(**values) + "".join(f", {name}" for name in values["speed_ups"])


def _with_progress(chunks: Iterator[Chunk], frames: int | None) -> Iterator[Chunk]:
    from tqdm import tqdm

    with tqdm(total=frames, unit="frame", desc="streaming", file=sys.stderr) as bar:
        for chunk in chunks:
            yield chunk
            bar.set_postfix(block=chunk.block, refresh=False)
            bar.update(len(chunk.frames))


@contextmanager
def _until_interrupted(chunks: Iterator[Chunk]) -> Iterator[Iterator[Chunk]]:
    """The chunks up to the first Ctrl-C; a second one interrupts as usual."""
    asked = Event()

    def stop(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield itertools.takewhile(lambda _: not asked.is_set(), chunks)
    finally:
        signal.signal(signal.SIGINT, before)


def open_engine(args: argparse.Namespace) -> Engine:
    """Check and load the artifact that ``add_engine_arguments`` names.

    Raises:
        OmniForcingError: for anything in the arguments or the artifact that the user can mend.
    """
    from omniforcing.streaming.artifact import Artifact

    artifact = Artifact.open(args.artifact, verify=not args.no_verify)
    _prepare(args.device, args.threads)

    from omniforcing.model.options import with_speed_ups
    from omniforcing.streaming.engine import Engine

    return Engine(artifact, args.device, with_speed_ups(args.speed_ups))


def _prepare(device: str, threads: int) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar is enough: ours
    if threads < 1:
        raise OmniForcingError("option.out-of-range", f"--threads is {threads}; the least is 1")
    torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OmniForcingError(
            "device.unusable", f"--device {device} does not work here: {str(error).splitlines()[0]}"
        ) from error


def _check(args: argparse.Namespace) -> list[tuple[float, str]]:
    """Refuse what needs no model to be refused; returns the changes of prompt."""
    from omniforcing.streaming.request import Request, check_prompt

    check_target(args.out)
    if sum(x is not None for x in (args.image, args.clip, args.resume)) > 1:
        raise OmniForcingError(
            "option.conflict",
            "a stream begins with one of --image, --continue and --resume; leave the others out",
        )
    if args.save and args.endless:
        raise OmniForcingError(
            "option.conflict",
            "--save writes the state at the end, which --endless has not; give --seconds",
        )
    Request(
        "resumed" if args.resume and args.prompt is None else args.prompt, args.seconds, args.seed
    )
    changes = []
    for seconds, prompt in args.then:
        check_prompt(prompt)
        try:
            changes.append((float(seconds), prompt))
        except ValueError as error:
            raise OmniForcingError(
                "option.malformed", f"--then {seconds}: give the seconds, then the prompt"
            ) from error
    return changes


def _begin(engine: Engine, args: argparse.Namespace) -> Stream:
    seconds = None if args.endless else args.seconds
    if args.resume:
        from omniforcing.streaming.state import StreamState

        stream = engine.resume(StreamState.load(args.resume, engine.digest, args.device), seconds)
        if args.prompt is not None:
            stream.steer(args.prompt, rewrite=args.rewrite)
        return stream
    opening = None
    if args.image:
        opening = engine.image(_read(args.image))
    if args.clip:
        opening = engine.clip(args.clip)
    return engine.stream(args.prompt, seconds, args.seed, opening)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OmniForcingError(
            "file.unreadable", f"{path} cannot be read ({error.strerror}); name an image in --image"
        ) from error


def run(args: argparse.Namespace) -> int:
    """Stream one clip as the parsed arguments say; returns 0.

    Raises:
        OmniForcingError: for anything in the arguments or the artifact that the user can mend.
    """
    changes = _check(args)
    engine = open_engine(args)
    with _begin(engine, args) as stream:
        for seconds, prompt in changes:
            stream.steer(prompt, at=engine.block_at(seconds), rewrite=args.rewrite)
        saved = stream.snapshot(at=stream.blocks) if args.save else None
        chunks = _with_progress(stream, stream.frames)
        with _until_interrupted(chunks) if args.endless else nullcontext(chunks) as wanted:
            speed = write_stream(wanted, args.out, engine.settings)
        if saved is not None:
            saved.result().save(args.save)
    values = figures(speed, engine.settings, args.device, args.speed_ups)
    line = (
        json.dumps({"out": str(args.out), **values})
        if args.json
        else f"{args.out}: {speed_line(values)}"
    )
    print(line, file=sys.stderr if args.out == STDOUT else sys.stdout)
    return 0
