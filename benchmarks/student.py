"""The streaming student's speed and memory, in one run against what it replaces and against itself without each speed-up.

``python -m benchmarks.student --config tiny|pocket|ltx2 --seconds 60 --json`` prints one JSON object: the blocks of a stream of
that length in a process that has streamed before; then, on a clip of 16 video latents, how many times as long as the student
take (a) diffusers' bidirectional forward with the same steps and (b) the plain cached forward of public code (``plain.py``),
whose blocks must be equal; then how many times as long (c) a block takes the student with one speed-up off. Weights are random.
``--config ltx2 --layers 2 --device cpu --grid 2 3`` tries the 19B path anywhere.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.setup import preset
from benchmarks.plain import PlainStudent
from omniforcing.codec.codec import Codec
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.core.config import ConfigError
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json
from omniforcing.core.latents import Latents, Pair, TextFeatures
from omniforcing.core.layout import LAYOUTS
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout, RolloutConfig, gaussian
from omniforcing.model.student import core_config
from omniforcing.model.transformer import DualStream
from omniforcing.pocket.foundation import KEPT

SIGMAS = (1.0, 0.909375, 0.725, 0.421875)
CLIP_BLOCKS = 5  # merged layout: 16 video latents
PEAK_SIZE = 4096


@dataclass(frozen=True)
class Case:
    """A student with random weights, and what it streams.

    Attributes:
        core: the transformer's config.
        rollout: table, grid, steps and window.
        text: tokens of a prompt.
        dtype: of the weights.
        codec: folder of a codec to decode with; None where the case has none.
    """

    core: dict[str, Any]
    rollout: RolloutConfig
    text: int
    dtype: torch.dtype
    codec: Path | None = None


def ltx2_core(**changes: Any) -> dict[str, Any]:
    """The released LTX-2.0 transformer."""
    sizes = {
        "num_attention_heads": 32,
        "attention_head_dim": 128,
        "cross_attention_dim": 4096,
        "caption_channels": 3840,
    }
    audio = {
        "audio_num_attention_heads": 32,
        "audio_attention_head_dim": 64,
        "audio_cross_attention_dim": 2048,
    }
    return {**sizes, **audio, "num_layers": 48, "rope_type": "split", **changes}


def tiny() -> Case:
    """Four layers of 8 heads, 32 and 16 wide, on 8x8 tokens: what a CPU must show."""
    core = ltx2_core(
        num_attention_heads=8,
        attention_head_dim=32,
        cross_attention_dim=256,
        audio_num_attention_heads=8,
        audio_attention_head_dim=16,
        audio_cross_attention_dim=128,
        num_layers=4,
        caption_channels=256,
    )
    return Case(
        core,
        RolloutConfig(LAYOUTS["merged"], (8, 8), SIGMAS, window=5, horizon=6),
        128,
        torch.float32,
    )


def ltx2() -> Case:
    """The 19B model at 512x768, in bf16."""
    rollout = RolloutConfig(LAYOUTS["merged"], (16, 24), SIGMAS, window=5, horizon=6)
    return Case(ltx2_core(), rollout, 1024, torch.bfloat16)


def pocket() -> Case:
    """The architecture and the codec of preset pocket, on the merged layout like the others."""
    config = preset("pocket")
    folder = KEPT / "codec"
    codec = read_json(folder / "codec.json")
    features = read_json(folder / "text" / "connectors" / "config.json")["caption_channels"]
    rollout = RolloutConfig(LAYOUTS["merged"], tuple(codec["grid"]), SIGMAS, window=5, horizon=6)
    return Case(
        core_config(config.teacher.model, codec, features),
        rollout,
        config.codec.text.length,
        torch.float32,
        folder,
    )


CASES: dict[str, Callable[[], Case]] = {"tiny": tiny, "pocket": pocket, "ltx2": ltx2}


def random_student(case: Case, device: torch.device) -> DualStream:
    """A student whose weights are drawn on the device that it is to run on: nothing large ever lies in the CPU's memory."""
    with torch.device("meta"):
        student = DualStream(LTX2VideoTransformer3DModel(**case.core))
    student = student.to(case.dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.core.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name else 0.0)
    return student


class Clock:
    """Seconds since it was made; on a GPU those of finished work."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.start = device, 0.0
        self.start = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.start


class TimedRollout(Rollout):
    """A rollout that notes how long its refreshes take; nothing, where they are part of the first step."""

    def __next__(self) -> Latents:
        self.refreshing = 0.0
        return super().__next__()

    def _refresh(self) -> None:
        clock = Clock(self.model.sinks.device)
        super()._refresh()
        self.refreshing = clock.now()


@dataclass(frozen=True)
class BlockCost:
    """Seconds of one block, and MB held while it was made."""

    steps: float
    refresh: float
    decode: float
    elapsed: float
    frames: int
    memory: float

    @property
    def total(self) -> float:
        return self.steps + self.refresh + self.decode


def memory_mb(device: torch.device) -> float:
    """The peak since the last call on a GPU, what the process holds now on a CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@dataclass(frozen=True)
class Bench:
    """A case on a device.

    Attributes:
        model: random weights.
        speed: the speed-ups of what is streamed.
        release: give up the model's weights that fast layers copy: less memory, and streams are all that it is good for then.
    """

    case: Case
    model: DualStream
    device: torch.device
    speed: InferenceOptions
    release: bool = False

    @cached_property
    def student(self) -> DualStream:
        """The model with its speed-ups."""
        return accelerate(self.model, self.speed, self.release)

    def prompt(self) -> TextFeatures:
        """Text features ``[1, L, D]``, the same in every run."""
        generator = torch.Generator(self.device).manual_seed(1)
        shape = (1, self.case.text, self.case.core["caption_channels"])
        video, audio = (
            torch.randn(shape, generator=generator, device=self.device) for _ in range(2)
        )
        return Pair(video, audio).map(lambda t: t.to(self.case.dtype))

    def noise(self) -> torch.Generator:
        """The source of a stream's noise, the same in every run."""
        return torch.Generator(self.device).manual_seed(2)

    def clip(self, speed: InferenceOptions, model: DualStream) -> list[Latents]:
        """The blocks of the clip that everything is compared on."""
        return list(
            islice(
                Rollout(model, self.prompt(), self.case.rollout, self.noise(), speed), CLIP_BLOCKS
            )
        )

    @property
    def first(self) -> int:
        """The first block of which time is taken: the window is full, and what is replayed was recorded."""
        window = self.case.rollout.window
        ring = self.case.rollout.table.ring(window)
        recorded = self.speed.compiled and self.device.type == "cuda"
        return window + 1 + (2 * ring if recorded else 0)

    def rollout(self) -> TimedRollout:
        """A stream's latents from the start."""
        return TimedRollout(
            self.student, self.prompt(), self.case.rollout, self.noise(), self.speed
        )

    def warm_up(self) -> None:
        """Stream until the window is full: for what happens once per process, such as compilation and handles."""
        for _ in islice(self.rollout(), self.first + 3):
            pass

    def blocks(self, speed: InferenceOptions) -> Iterator[float]:
        """Seconds of one block after the other, from ``first`` on, with other speed-ups."""
        fast = accelerate(self.model, speed)
        rollout = Rollout(fast, self.prompt(), self.case.rollout, self.noise(), speed)
        for _ in range(self.first):
            next(rollout)
        while True:
            yield self.seconds(partial(next, rollout))

    def stream(self, blocks: int) -> Iterator[BlockCost]:
        """Cost of every block of a stream; elapsed counts from the prompt's features."""
        self.student  # made before the clock starts  # noqa: B018
        codec = None if self.case.codec is None else Codec.load(self.case.codec, device=self.device)
        decoder = None if codec is None else StreamingDecoder(codec, self.case.rollout.grid)
        clock, table = Clock(self.device), self.case.rollout.table
        rollout = self.rollout()
        for index in range(blocks):
            began = clock.now()
            latents = next(rollout)
            made = clock.now()
            if decoder is not None:
                decoder.push(latents)
            done, frames = clock.now(), len(table.block(index).frames)
            steps = made - began - rollout.refreshing
            yield BlockCost(
                steps, rollout.refreshing, done - made, done, frames, memory_mb(self.device)
            )

    @torch.no_grad()
    def bidirectional(self) -> None:
        """The whole clip by diffusers' own forward, one per denoising step."""
        core, rollout = self.model.core, self.case.rollout
        counts, text = rollout.table.total(CLIP_BLOCKS), self.prompt()
        x = gaussian(self.model, counts, rollout.grid, 1, self.noise()).map(
            lambda t: t.to(self.case.dtype)
        )
        for sigma in rollout.sigmas:
            core(
                hidden_states=x.video.flatten(1, 2),
                audio_hidden_states=x.audio,
                encoder_hidden_states=text.video,
                audio_encoder_hidden_states=text.audio,
                timestep=torch.full((1,), sigma * 1000, device=self.device),
                num_frames=counts.video,
                height=rollout.grid[0],
                width=rollout.grid[1],
                audio_num_frames=counts.audio,
                use_cross_timestep=False,
                return_dict=False,
            )

    def plain(self) -> list[Latents]:
        """The same clip by the forward of public code."""
        return PlainStudent(self.model, self.case.rollout).stream(
            self.prompt(), self.noise(), CLIP_BLOCKS
        )

    def seconds(self, run: Callable[[], object]) -> float:
        """How long one run takes."""
        clock = Clock(self.device)
        run()
        return clock.now()


def difference(a: list[Latents], b: list[Latents]) -> float:
    """The largest error of blocks relative to the largest value."""
    largest = max(float(t.abs().max()) for block in a for t in block)
    errors = (
        float((s - t).abs().max())
        for one, other in zip(a, b, strict=True)
        for s, t in zip(one, other, strict=True)
    )
    return max(errors) / largest


def ratios(bench: Bench, rounds: int) -> dict[str, float]:
    """How many times as long the others take for the clip: fastest of interleaved rounds, so that no load favours one.

    ``difference_plain`` is by how much the plain forward's blocks differ from ours, relative to the largest value.
    """
    fast = accelerate(bench.model, bench.speed)
    runs: dict[str, Callable[[], Any]] = {
        "ours": partial(bench.clip, bench.speed, fast),
        "plain": bench.plain,
    }
    runs["bidirectional"] = bench.bidirectional
    apart = difference(runs["ours"](), runs["plain"]())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(bench.seconds(run))
    least = {name: min(found) for name, found in times.items()}
    found = {f"ratio_{name}": least[name] / least["ours"] for name in ("bidirectional", "plain")}
    return {**found, "difference_plain": apart}


def ratios_without(bench: Bench, rounds: int) -> dict[str, float]:
    """How many times as long a block takes without each speed-up: fastest of rounds, interleaved where memory holds all.

    Raises:
        OmniForcingError: if blocks that should be equal are not.
    """
    speeds = {"": bench.speed, **bench.speed.without_each()}
    ours = bench.clip(bench.speed, accelerate(bench.model, bench.speed))
    for name, speed in speeds.items():
        check_equal(
            bench, difference(ours, bench.clip(speed, accelerate(bench.model, speed))), name
        )
    if bench.device.type == "cuda":  # the weights of one at a time
        times = {name: list(islice(bench.blocks(speed), rounds)) for name, speed in speeds.items()}
    else:
        streams = {name: bench.blocks(speed) for name, speed in speeds.items()}
        rows = [[next(stream) for stream in streams.values()] for _ in range(rounds)]
        times = {
            name: list(column)
            for name, column in zip(streams, zip(*rows, strict=True), strict=True)
        }
    least = {name: min(found) for name, found in times.items()}
    return {name: least[name] / least[""] for name in speeds if name}


def allowed(bench: Bench) -> float:
    """By how much blocks may differ that should be equal, relative to the largest value; fp8 is coarser by design."""
    if bench.speed.fp8:
        return float("inf")
    return 1e-4 if bench.case.dtype is torch.float32 else 0.1


def check_equal(bench: Bench, apart: float, name: str) -> None:
    """Refuse to compare what computes something else.

    Raises:
        OmniForcingError: if it is further from the student than rounding explains.
    """
    if not apart <= allowed(bench):
        raise OmniForcingError(
            "benchmarks.results-differ",
            f"the blocks of {name!r} differ from the student's by {apart:.2g} of their size",
        )


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of one large matrix product here and now: the best of five."""
    size = PEAK_SIZE if device.type == "cuda" else PEAK_SIZE // 4
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    best = 0.0
    for _ in range(5):
        clock = Clock(device)
        for _ in range(4):
            torch.mm(a, b)
        best = max(best, 4 * 2 * size**3 / clock.now())
    return best


def block_operations(bench: Bench) -> float:
    """Operations in the matrix products of a block in full window: linear layers as counted, attention by its sizes."""
    rollout, core = bench.case.rollout, bench.model.core.config
    table, spatial = rollout.table, rollout.grid[0] * rollout.grid[1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bench.clip(InferenceOptions(layers=False), bench.model)
        first = counter.get_flop_counts()["Global"]
    linear = (
        sum(count for name, count in first.items() if "attention" not in str(name))
        / table.total(CLIP_BLOCKS).video
    )
    full = rollout.window + 1
    block = table.counts(full)
    seen = [table.counts(i) for i in table.visible(full, rollout.window)]
    keys = Pair(sum(c.video for c in seen) * spatial, sum(c.audio for c in seen))
    own = Pair(block.video * spatial, block.audio)
    widths = Pair(
        core.num_attention_heads * core.attention_head_dim, core.audio_cross_attention_dim
    )
    attention = (
        own.video * (keys.video + bench.case.text) * widths.video
        + own.audio * (keys.audio + bench.case.text) * widths.audio
    )
    attention += (own.video * keys.audio + own.audio * keys.video) * widths.audio
    forwards = len(rollout.sigmas) + 1
    return linear * block.video + 4 * attention * core.num_layers * forwards


def measure(bench: Bench, seconds: float, rounds: int) -> dict[str, Any]:
    """All figures of one case."""
    bench.warm_up()
    blocks, first = (
        list(bench.stream(bench.case.rollout.table.blocks_for_seconds(seconds))),
        bench.first,
    )
    steady = blocks[first:] or blocks[-1:]
    work = np.array([block.total for block in steady])
    early, late = blocks[first : first + 11] or steady, blocks[-10:]
    p95 = [float(np.percentile([block.total for block in part], 95)) for part in (early, late)]
    generating = float(np.median([block.steps + block.refresh for block in steady]))
    peak, others = matmul_peak(bench.device, bench.case.dtype), ratios(bench, rounds)
    check_equal(bench, others["difference_plain"], "plain")
    return {
        "fps": sum(block.frames for block in steady) / float(work.sum()),
        "ttfc_s": blocks[min(1, len(blocks) - 1)].elapsed,
        "block_p50_s": float(np.percentile(work, 50)),
        "block_p95_s": float(np.percentile(work, 95)),
        "flatness": p95[1] / p95[0],
        "peak_mb_early": max(block.memory for block in early),
        "peak_mb_late": max(block.memory for block in late),
        "matmul_share": block_operations(bench) / generating / peak,
        "split": split(steady, decoded=bench.case.codec is not None),
        **others,
        "ratio_without": ratios_without(bench, rounds),
    }


def split(blocks: list[BlockCost], decoded: bool) -> dict[str, float | None]:
    """Median seconds of a block's steps, its predecessor's refresh and its decoding; None where nothing is decoded."""
    found = {
        name: float(np.median([getattr(b, name) for b in blocks]))
        for name in ("steps", "refresh", "decode")
    }
    return {**found, "decode": found["decode"] if decoded else None}


def prepare(arguments: argparse.Namespace) -> Bench:
    """The case that the command line asks for, on its device.

    Raises:
        ConfigError: if there is no such device, or a speed-up needs a GPU.
    """
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device.no-cuda",
            "--device is cuda, but torch finds no CUDA device here; leave it out, or try --device cpu",
        )
    case = CASES[arguments.config]()
    if arguments.layers:
        case = replace(case, core={**case.core, "num_layers": arguments.layers})
    if arguments.text:
        case = replace(case, text=arguments.text)
    if arguments.grid:
        case = replace(case, rollout=replace(case.rollout, grid=tuple(arguments.grid)), codec=None)
    speed = replace(
        InferenceOptions(),
        **dict.fromkeys(arguments.on, True),
        **dict.fromkeys(arguments.off, False),
    )
    speed.check(device)
    return Bench(case, random_student(case, device), device, speed)


def report(found: dict[str, Any], as_json: bool) -> None:
    """Print the figures as one JSON object, or a line each."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        shown = value if not isinstance(value, float) else f"{value:.4g}"
        print(f"{name:<20} {shown}")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", choices=list(CASES), default="tiny", help="which student (default: tiny)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="length of the stream (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="runs of each side of a ratio, interleaved (default: 5)",
    )
    parser.add_argument("--layers", type=int, help="another number of layers, to try a large case")
    parser.add_argument(
        "--text", type=int, help="another number of tokens of a prompt, to try a large case"
    )
    parser.add_argument(
        "--grid",
        type=int,
        nargs=2,
        help="other spatial tokens of a video latent, to try a large case",
    )
    parser.add_argument("--device", help="cuda or cpu (default: a GPU if there is one)")
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="torch threads (default: torch's own)",
    )
    switches = list(asdict(InferenceOptions()))
    parser.add_argument(
        "--on", nargs="+", choices=switches, default=[], help="speed-ups to switch on"
    )
    parser.add_argument(
        "--off", nargs="+", choices=switches, default=[], help="speed-ups to switch off"
    )
    arguments = parser.parse_args()

    def run() -> None:
        torch.set_num_threads(arguments.threads)
        bench = prepare(arguments)
        name = (
            torch.cuda.get_device_name(bench.device)
            if bench.device.type == "cuda"
            else f"CPU, {arguments.threads} threads"
        )
        parameters = sum(p.numel() for p in bench.model.parameters())
        about = {
            "config": arguments.config,
            "measured_on": name,
            "parameters": parameters,
            "speed": asdict(bench.speed),
        }
        report({**about, **measure(bench, arguments.seconds, arguments.rounds)}, arguments.json)

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
