"""Stream a clip: a prompt in, an MP4 out, block by block, and how fast it came."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, BinaryIO

from omniforcing.core.errors import OmniForcingError

if TYPE_CHECKING:
    from omniforcing.evaluation.speed import StreamSpeed
    from omniforcing.media.marking import Mark
    from omniforcing.media.signing import ClipSigner
    from omniforcing.streaming.artifact import StreamSettings
    from omniforcing.streaming.engine import Engine
    from omniforcing.streaming.live import Chunk, Stream


STDOUT = Path("-")


@dataclass(frozen=True)
class EngineOptions:
    """Which artifact streams, and how.

    Attributes:
        artifact: what ``Artifact.open`` takes, such as a folder; None for the student that the
            package keeps.
        device: where to compute, as torch names it.
        threads: of the CPU.
        speed_ups: names, as ``with_speed_ups`` knows them.
        verify: whether the artifact's checksums are checked.
        loras: adapters over the student, each as ``FILE`` or ``FILE:SCALE``.
        precision: of student and text encoder, as ``Engine`` knows it.
        free_text_encoder: whether the text encoder is loaded for each prompt and freed after it.
        watermark: program of a watermark for the sound, ``FILE:SHA256``; None for none.
    """

    artifact: Path | None = None
    device: str = "cpu"
    threads: int = 1
    speed_ups: tuple[str, ...] = ()
    verify: bool = True
    loras: tuple[str, ...] = ()
    precision: str = "stored"
    free_text_encoder: bool = False
    watermark: str | None = None


@dataclass(frozen=True)
class StreamOptions:
    """What is streamed, and where to.

    Attributes:
        engine: what streams.
        out: MP4 to write; ``-`` for standard output.
        prompt: what to show and hear; that of the resumed stream if None.
        seconds: length of the clip.
        endless: whether it goes on until Ctrl-C instead.
        seed: of the noise.
        then: second and prompt of each change on the way.
        rewrite: whether a change also writes anew what the student remembers.
        scales: second and scales of each change of the adapters' scales.
        image: picture to begin with.
        clip: MP4 to go on from.
        save: file for the stream's state at its end.
        resume: file with a stream's state to go on from.
        sign: certificate and private key to sign the clip with.
        as_json: whether figures are printed as json.
    """

    engine: EngineOptions
    out: Path
    prompt: str | None = None
    seconds: float = 8.0
    endless: bool = False
    seed: int = 0
    then: tuple[tuple[float, str], ...] = ()
    rewrite: bool = False
    scales: tuple[tuple[float, tuple[float, ...]], ...] = ()
    image: Path | None = None
    clip: Path | None = None
    save: Path | None = None
    resume: Path | None = None
    sign: tuple[Path, Path] | None = None
    as_json: bool = False


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
            f"{path} is no name that ends in .mp4, the only format that is written; "
            "rename it in --out",
        )
    if path.is_dir():
        raise OmniForcingError("file.is-a-folder", f"{path} is a folder; name a file in --out")
    if not path.parent.is_dir():
        raise OmniForcingError(
            "file.no-folder",
            f"the folder {path.parent} does not exist; make it or choose another --out",
        )


def write_stream(
    chunks: Iterable[Chunk],
    out: Path,
    settings: StreamSettings,
    mark: Mark | None = None,
    asked: float | None = None,
    signer: ClipSigner | None = None,
) -> StreamSpeed:
    """Encode a stream into an MP4 file, or block by block onto standard output if ``out`` is ``-``.

    The file appears under its name when it is whole.

    Args:
        chunks: the stream.
        out: the file.
        settings: settings of the stream.
        mark: what the file says of how it was made; by default, by which preset's student.
        asked: ``time.perf_counter`` when the stream was asked for; None: no spans are made.
        signer: signs the file when it is whole.

    Raises:
        OmniForcingError: if the file cannot be written.
    """
    from omniforcing.core.files import new_file
    from omniforcing.media.marking import Mark
    from omniforcing.media.signing import signing

    mark = mark or Mark(settings.preset)
    if out == STDOUT:
        return _encode(chunks, sys.stdout.buffer, settings, mark, asked)
    with new_file(out) as file, signing(signer, file, mark) as target:
        return _encode(chunks, target, settings, mark, asked)


def _encode(
    chunks: Iterable[Chunk],
    file: BinaryIO,
    settings: StreamSettings,
    mark: Mark,
    asked: float | None,
) -> StreamSpeed:
    from omniforcing.evaluation.speed import stream_speed
    from omniforcing.media.mux import Muxer
    from omniforcing.streaming.telemetry import spans

    size = (settings.height, settings.width)
    timings, traced, end = [], spans.begin(mark, asked), "failed"
    try:
        with Muxer(file, *size, settings.sample_rate, mark=mark) as muxer:
            for chunk in chunks:
                began = time.perf_counter()
                # First: a viewer may stop before anything of this chunk is read.
                timings.append(chunk.timing)
                muxer.add(chunk)
                file.flush()
                traced.block(chunk.block, chunk.timing, encode=(began, time.perf_counter()))
        end = "ended"
    except BrokenPipeError:
        end = "stopped"
        # The player was closed, which is how a viewer stops. Without this, Python would report a
        # broken pipe at exit when it flushes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    finally:
        traced.close(end)
    return stream_speed(timings)


def figures(
    speed: StreamSpeed, settings: StreamSettings, device: str, speed_ups: Sequence[str] = ()
) -> dict[str, Any]:
    """Report the measured speed with its conditions: size, steps, window, speed-ups, device."""
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


def open_engine(options: EngineOptions) -> Engine:
    """Check and load an artifact; one line of stderr says so if it is the kept student.

    Raises:
        OmniForcingError: for anything in the arguments or the artifact that the user can mend.
    """
    from omniforcing.streaming.artifact import Artifact

    if options.artifact is None:
        from omniforcing.pocket.student import describe_student

        artifact = Artifact.kept(options.verify)
        kept = describe_student(artifact.settings.preset)
        print(f"streaming with {kept}; --artifact names another", file=sys.stderr)
    else:
        artifact = Artifact.open(options.artifact, verify=options.verify)
    _prepare(options.device, options.threads)

    from omniforcing.model.options import with_speed_ups
    from omniforcing.streaming.engine import Engine

    speed_ups = with_speed_ups(options.speed_ups)
    return Engine(
        artifact,
        options.device,
        speed_ups,
        options.loras,
        options.precision,
        keep_text_encoder=not options.free_text_encoder,
        watermark=options.watermark,
    )


def _prepare(device: str, threads: int) -> None:
    import torch

    from omniforcing.core.distributed import check_device

    if threads < 1:
        raise OmniForcingError("option.out-of-range", f"--threads is {threads}; the least is 1")
    torch.set_num_threads(threads)
    check_device(device)


def _check(options: StreamOptions) -> None:
    """Refuse what needs no model to be refused."""
    from omniforcing.streaming.request import Request, check_moment, check_prompt, check_scales

    check_target(options.out)
    if sum(x is not None for x in (options.image, options.clip, options.resume)) > 1:
        raise OmniForcingError(
            "option.conflict",
            "a stream begins with one of --image, --continue and --resume; leave the others out",
        )
    if options.sign and options.out == STDOUT:
        raise OmniForcingError(
            "option.conflict", "--sign signs a whole clip, which - never is; name a file in --out"
        )
    if options.save and options.endless:
        raise OmniForcingError(
            "option.conflict",
            "--save writes the state at the end, which --endless has not; give --seconds",
        )
    resumed = options.resume is not None and options.prompt is None
    Request("resumed" if resumed else options.prompt, options.seconds, options.seed)  # type: ignore[arg-type]
    # A resumed stream counts from its first beginning, so only its saved state knows its end.
    length = None if options.endless or options.resume else options.seconds
    for seconds, prompt in options.then:
        check_moment(seconds, length)
        check_prompt(prompt)
    for seconds, scales in options.scales:
        check_moment(seconds, length)
        check_scales(scales, len(options.engine.loras))


def _check_words(engine: Engine, options: StreamOptions) -> None:
    """Refuse prompts that would be cut, and warn of words that the text encoder never saw."""
    later = [prompt for _, prompt in options.then]
    for prompt in [options.prompt, *later]:
        if prompt is None:
            continue
        count = engine.count_tokens(prompt)
        count.refuse_cut()
        if count.unknown:
            print(f"warning: {count.doubt}", file=sys.stderr)


def _begin(engine: Engine, options: StreamOptions) -> Stream:
    seconds = None if options.endless else options.seconds
    if options.resume:
        from omniforcing.streaming.state import StreamState

        stream = engine.resume(
            StreamState.load(options.resume, engine.digest, options.engine.device), seconds
        )
        if options.prompt is not None:
            stream.steer(options.prompt, rewrite=options.rewrite)
        return stream
    opening = None
    if options.image:
        opening = engine.image(_read(options.image))
    if options.clip:
        opening = engine.clip(options.clip)
    assert options.prompt is not None, "_check refuses a new stream without a prompt"
    return engine.stream(options.prompt, seconds, options.seed, opening)


def _border(engine: Engine, stream: Stream, seconds: float) -> int:
    """Return the block that a change at ``seconds`` begins with."""
    block = engine.block_at(seconds)
    if stream.blocks is not None and block >= stream.blocks:
        raise OmniForcingError(
            "streaming.no-moment",
            f"a prompt changes where a block begins, and no block of this stream begins at or "
            f"after second {seconds:g}; name an earlier one, or make the stream longer",
        )
    return block


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OmniForcingError(
            "file.unreadable", f"{path} cannot be read ({error.strerror}); name an image in --image"
        ) from error


def stream_clip(options: StreamOptions) -> None:
    """Stream one clip into a file and print how fast it came.

    Raises:
        OmniForcingError: for anything in the options or the artifact that the user can mend.
    """
    from omniforcing.evaluation.speed import speed_line
    from omniforcing.media.signing import ClipSigner

    _check(options)
    signer = ClipSigner(*options.sign) if options.sign else None
    engine = open_engine(options.engine)
    _check_words(engine, options)
    with _begin(engine, options) as stream:
        for seconds, prompt in options.then:
            stream.steer(prompt, at=_border(engine, stream, seconds), rewrite=options.rewrite)
        for seconds, scales in options.scales:
            stream.set_scales(scales, at=_border(engine, stream, seconds))
        saved = stream.snapshot(at=stream.blocks) if options.save else None
        chunks = _with_progress(stream, stream.frames)
        with _until_interrupted(chunks) if options.endless else nullcontext(chunks) as wanted:
            speed = write_stream(
                wanted, options.out, engine.settings, engine.mark, stream.parts.asked, signer
            )
        if saved is not None and options.save is not None:
            saved.result().save(options.save)
    values = figures(speed, engine.settings, options.engine.device, engine.options.speed_ups)
    line = (
        json.dumps({"out": str(options.out), **values})
        if options.as_json
        else f"{options.out}: {speed_line(values)}"
    )
    print(line, file=sys.stderr if options.out == STDOUT else sys.stdout)
