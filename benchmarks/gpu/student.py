"""The 19B student with random weights: how fast it streams, with which speed-ups, in which layouts, and where the time goes.

Latents alone unless a row says otherwise. The clock of TTFC starts with the prompt's features and stops when block 1 is
there (B0 + B1), in a process that has streamed before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.networks import streaming_codec, student_case
from benchmarks.gpu.rows import Figures, Measurement, Wrong
from benchmarks.gpu.setup import Setup
from benchmarks.student import (
    Bench,
    BlockCost,
    Case,
    allowed,
    block_operations,
    random_student,
    ratios,
)
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.errors import OmniForcingError
from omniforcing.layout import LAYOUTS
from omniforcing.metrics.speed import stalls
from omniforcing.model.attention import SITES
from omniforcing.model.rollout import Rollout
from omniforcing.model.speed import Speed
from omniforcing.stream.decoding import Decoding
from omniforcing.stream.generation import Generation
from omniforcing.stream.live import Plan, Stream
from omniforcing.stream.speed import stream_speed

LONG, SHORT = 62, 12  # blocks: to block 60 and beyond; measured after the window is full
USABLE = 0.94  # of a card's memory
ACTIVATIONS = 3e9  # bytes, by estimate, of the widest moment of a block at 512x768
CANDIDATES = ("compiled", "concurrent", "fp8")
FEWER = {3: (1.0, 0.75, 0.5), 2: (1.0, 0.5)}


def measurements(setup: Setup) -> list[Measurement]:
    """Rows of the student, those first that say most."""

    def made(
        name: str, run: partial[Figures], does: str, cuda: bool = False, limit: float | None = None
    ) -> Measurement:
        return Measurement(name, run, does, cuda, limit=limit)

    def stream(*on: str) -> partial[Figures]:
        return partial(
            streamed, setup, student_case(setup), replace(Speed(), **dict.fromkeys(on, True))
        )

    fast = partial(best, setup)
    return [
        made("eager", partial(eager, setup), "stream to block 60"),
        made(
            "plain forward",
            partial(plain, setup),
            "time the plain cached forward against ours on 16 video latents",
        ),
        made("by operation", partial(by_operation, setup), "profile one block"),
        made("fp8", stream("fp8"), "stream with fp8 products", cuda=True),
        made("concurrent", stream("concurrent"), "stream with audio beside video", cuda=True),
        made(
            "thirds", partial(other_layout, setup, "thirds"), "stream a third of a second per block"
        ),
        made("decoded, causal decoder", partial(decoded, setup, True), "stream frames and samples"),
        made(
            "compiled",
            stream("compiled"),
            "compile the layers and replay CUDA graphs",
            cuda=True,
            limit=240,
        ),
        made(
            "best",
            partial(best_stream, setup),
            "stream to block 60 with all that is faster",
            cuda=True,
        ),
        made("3 steps", partial(fewer_steps, setup, 3), "stream with three steps a block"),
        made("2 steps", partial(fewer_steps, setup, 2), "stream with two steps a block"),
        made("prefix", partial(other_layout, setup, "prefix"), "stream in the paper's layout"),
        made(
            "decoded, look-ahead",
            partial(decoded, setup, False),
            "stream through the decoder as released",
        ),
        made(
            "largest kernels",
            partial(kernels, setup, fast),
            "name the five kernels that take most",
            cuda=True,
        ),
    ]


def eager(setup: Setup) -> Figures:
    """The usual speed-ups to block 60, with the operations that a block takes."""
    case = student_case(setup)
    bench, remark = opened(setup, case, Speed(), release=False)
    operations = block_operations(bench)
    found = figures(setup, bench, 8 if setup.small else LONG, operations, flat=True)
    return {**found, "tflop_per_block": operations / 1e12, **remark}


def streamed(setup: Setup, case: Case, speed: Speed, blocks: int | None = None) -> Figures:
    """A stream with some speed-ups; its weights in the form that they are used in alone."""
    bench, remark = opened(setup, case, speed, release=True)
    count = (bench.first + 4 if setup.small else bench.first + SHORT) if blocks is None else blocks
    full, forwards = len(student_case(setup).rollout.sigmas) + 1, len(case.rollout.sigmas) + 1
    whole = setup.figure("student", "eager", "tflop_per_block")
    # Operations follow the forwards; blocks of another size are not counted.
    same = case.rollout.table is student_case(setup).rollout.table
    operations = whole * 1e12 * forwards / full if whole and same else None
    return {
        **figures(setup, bench, count, operations, flat=blocks is not None),
        "on": switched(speed),
        **remark,
    }


def figures(
    setup: Setup, bench: Bench, count: int, operations: float | None, flat: bool
) -> Figures:
    """What ``count`` blocks of a stream cost."""
    bench.warm_up()
    blocks = list(bench.stream(count))
    steady = blocks[bench.first :] or blocks[-1:]
    work = np.array([block.total for block in steady])
    media = sum(block.frames for block in steady)
    peak = setup.figure("machine", "matmul", "bf16_tflops")
    found = {
        "fps": media / float(work.sum()),
        "first_s": blocks[0].elapsed,
        "ttfc_s": blocks[min(1, len(blocks) - 1)].elapsed,
        "block_p50_ms": 1000 * float(np.percentile(work, 50)),
        "block_p95_ms": 1000 * float(np.percentile(work, 95)),
        "steps_ms": 1000 * float(np.median([block.steps for block in steady])),
        "refresh_ms": 1000 * float(np.median([block.refresh for block in steady])),
        "gb_early": max(block.memory for block in steady[:5]) / 1000,
        "gb_late": max(block.memory for block in steady[-5:]) / 1000,
        "blocks": len(blocks),
    }
    if flat:
        found["flatness"] = _p95(steady[-10:]) / _p95(steady[:11])
    if operations and peak:
        found["matmul_share"] = operations / float(np.median(work)) / (peak * 1e12)
    return found


def _p95(blocks: Iterable[BlockCost]) -> float:
    return float(np.percentile([block.total for block in blocks], 95))


def opened(setup: Setup, case: Case, speed: Speed, release: bool) -> tuple[Bench, Figures]:
    """A bench for a case, with as many layers as the card's memory holds; the remark says so where they are fewer."""
    remark: Figures = {}
    if setup.cuda:
        total = USABLE * torch.cuda.mem_get_info()[1]
        few, all_of_them = (
            needed(replace(case, core={**case.core, "num_layers": n}), release)
            for n in (1, _layers(case))
        )
        if all_of_them > total:
            layers = 1 + int((total - few) * (_layers(case) - 1) / (all_of_them - few))
            if layers < 1:
                raise OmniForcingError(
                    f"one layer needs {few / 1e9:.0f} GB, the card has {total / 1e9:.0f} usable"
                )
            remark["remark"] = (
                f"{layers} of {_layers(case)} layers: all of them need {all_of_them / 1e9:.0f} GB, "
                f"{total / 1e9:.0f} are usable"
            )
            case = replace(case, core={**case.core, "num_layers": layers})
    return Bench(
        case, random_student(case, setup.torch_device), setup.torch_device, speed, release
    ), remark


def _layers(case: Case) -> int:
    return int(case.core["num_layers"])


def needed(case: Case, release: bool) -> float:
    """Bytes that a stream takes: weights, their joined copies unless the originals are released, K/V,
    text and activations."""
    with torch.device("meta"):
        core = LTX2VideoTransformer3DModel(**case.core)
    named = [(name, p.numel()) for name, p in core.named_parameters() if "attn2" not in name]
    joined = sum(
        size for name, size in named if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight"))
    )
    weights = sum(p.numel() for p in core.parameters()) + (0 if release else joined)
    table, window = case.rollout.table, case.rollout.window
    cycle = len(table.cycle)
    slots = -(-(window + 1) // cycle) * cycle
    counts = table.total(slots + 1)
    tokens = {
        "video": counts.video * case.rollout.grid[0] * case.rollout.grid[1],
        "audio": counts.audio,
    }
    config = core.config
    widths = {
        "video": config.num_attention_heads * config.attention_head_dim,
        "audio": config.audio_cross_attention_dim,
    }
    # Cross-modal attention is as wide as the audio on both sides. Un-rotated keys, keys and values.
    wide = {site: widths["video" if site == "video" else "audio"] for site in SITES}
    cached = sum(3 * tokens[keys] * wide[site] for site, (_, keys, _) in SITES.items())
    text = 2 * case.text * sum(widths.values())
    size = case.dtype.itemsize
    return float(size * (weights + (cached + text) * _layers(case))) + ACTIVATIONS


def switched(speed: Speed) -> str:
    """The speed-ups beyond the usual ones."""
    usual = asdict(Speed())
    return " ".join(name for name, on in asdict(speed).items() if on and not usual[name]) or "usual"


def plain(setup: Setup) -> Figures:
    """How many times as long as ours the plain cached forward and diffusers' bidirectional one take for 16 video latents.

    Raises:
        Wrong: if the plain forward computes something else.
    """
    bench, remark = opened(setup, student_case(setup), Speed(), release=False)
    found: Figures = {**ratios(bench, 2 if setup.small else 3), **remark}
    if not found["difference_plain"] <= allowed(bench):
        raise Wrong(
            found,
            f"the plain forward's blocks differ by more than {allowed(bench):g} of the largest value",
        )
    return found


def best(setup: Setup) -> Speed:
    """The usual speed-ups and those whose row shows them at least 2 % faster; all that were not measured stay off."""
    eager = setup.figure("student", "eager", "fps") or 0.0
    faster = [
        name for name in CANDIDATES if (setup.figure("student", name, "fps") or 0.0) > 1.02 * eager
    ]
    return replace(Speed(), **dict.fromkeys(faster, True)) if setup.cuda and eager else Speed()


def best_stream(setup: Setup) -> Figures:
    """All that is faster by itself, together, to block 60."""
    speed = best(setup)
    if switched(speed) == "usual":
        raise OmniForcingError("no speed-up was measured to be faster than eager")
    found = streamed(setup, student_case(setup), speed, LONG)
    ours, plain_ratio = (
        setup.figure("student", row, key)
        for row, key in (("eager", "fps"), ("plain forward", "ratio_plain"))
    )
    # The plain forward was timed against eager in this run.
    return (
        {**found, "ratio_plain": found["fps"] / ours * plain_ratio}
        if ours and plain_ratio
        else found
    )


def fewer_steps(setup: Setup, steps: int) -> Figures:
    """Fewer denoising steps per block."""
    case = student_case(setup)
    return streamed(
        setup, replace(case, rollout=replace(case.rollout, sigmas=FEWER[steps])), best(setup)
    )


def other_layout(setup: Setup, name: str) -> Figures:
    """Another block table, with a window of as many seconds."""
    case = student_case(setup)
    table, cycle = LAYOUTS[name], len(LAYOUTS[name].cycle)
    rollout = replace(
        case.rollout,
        table=table,
        window=case.rollout.window * cycle,
        horizon=case.rollout.horizon * cycle,
    )
    return streamed(setup, replace(case, rollout=rollout), best(setup))


def decoded(setup: Setup, causal: bool) -> Figures:
    """The stream as a viewer gets it, by the product's own threads: decoding overlaps generation."""
    case, speed = (
        student_case(setup),
        replace(best(setup), compiled=False),
    )  # recording would fill a short stream
    bench, remark = opened(setup, case, speed, release=True)
    codec = streaming_codec(setup, causal)
    seconds = 3.0 if setup.small else 12.0

    def chunks(length: float) -> list[Any]:
        limits = round(24 * length) + 1, round(codec.sample_rate * length)
        blocks = case.rollout.table.blocks_for_seconds(length)
        asked = time.perf_counter()
        plan = Plan(
            generation=Generation(
                lambda text: Rollout(bench.student, text, case.rollout, bench.noise(), speed),
                bench.prompt(),
            ),
            decoding=Decoding(StreamingDecoder(codec, case.rollout.grid), limits),
            encode=lambda _: bench.prompt(),
            table=case.rollout.table,
            stop=blocks,
            frames=limits[0],
            prompt="of random features",
            seed=0,
            artifact="",
            device=setup.device,
            asked=asked,
        )
        with Stream(plan) as opened_stream:
            return list(opened_stream)

    chunks(2.0)
    found = chunks(seconds)
    timings = [chunk.timing for chunk in found]
    speeds = stream_speed(timings)
    moving = next(
        i for i in range(len(found)) if sum(len(chunk.frames) for chunk in found[: i + 1]) > 1
    )
    steady = timings[1:] or timings
    return {
        "fps": speeds.fps,
        "ttfc_s": timings[moving].elapsed,
        "block_p50_ms": 1000 * speeds.block_p50_s,
        "block_p95_ms": 1000 * speeds.block_p95_s,
        "decode_ms": 1000 * float(np.median([timing.decode for timing in steady])),
        "stalls": stalls(timings),
        "latents_ahead": codec.video_reach.ahead,
        "blocks": len(found),
        "on": switched(speed),
        **remark,
    }


def profiled(setup: Setup, speed: Speed) -> Any:
    """One block in steady state under torch's profiler; its averages."""
    bench, _ = opened(setup, student_case(setup), speed, release=True)
    rollout = bench.rollout()
    for _ in range(bench.first):
        next(rollout)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.cuda else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        next(rollout)
        if setup.cuda:
            torch.cuda.synchronize()
    return profiler


def by_operation(setup: Setup) -> Figures:
    """Milliseconds of one block by kind of operation: device time on a GPU, time of the operation itself on a CPU."""
    profiler = profiled(setup, Speed())
    spent = dict.fromkeys(
        ("attention", "feed_forward", "projections", "adaln_norms_rope", "copies"), 0.0
    )
    events = profiler.key_averages(group_by_input_shape=True)
    for event in events:
        own = event.self_device_time_total if setup.cuda else event.self_cpu_time_total
        if event.key.startswith(("aten::", "mkldnn::")):
            spent[kind_of(event.key, event.input_shapes)] += own / 1000
    found: Figures = {f"{name}_ms": value for name, value in spent.items()}
    if setup.cuda:
        found["launches"] = sum(event.count for event in events if "LaunchKernel" in event.key)
    return found


def kind_of(operation: str, shapes: list[list[int]]) -> str:
    """What an operation is for; the feed-forward's products are those four times as wide on one side as on the other."""
    if "attention" in operation:
        return "attention"
    if "gelu" in operation:
        return "feed_forward"
    if any(word in operation for word in ("mm", "linear")):
        sizes = next((shape for shape in reversed(shapes) if len(shape) == 2), [1, 1])
        return "feed_forward" if max(sizes) == 4 * min(sizes) else "projections"
    return "copies" if "copy" in operation else "adaln_norms_rope"


def kernels(setup: Setup, chosen: partial[Speed]) -> Figures:
    """The five kernels that take most of a block, with milliseconds and share."""
    speed = replace(chosen(), compiled=False)
    events = [
        e
        for e in profiled(setup, speed).key_averages()
        if "CUDA" in str(e.device_type) and e.self_device_time_total
    ]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    found: Figures = {"kernels_ms": total / 1000, "on": switched(speed)}
    for place, event in enumerate(events[:5], 1):
        share = event.self_device_time_total / total
        spent = f"{event.self_device_time_total / 1000:.1f} ms, {share:.0%}, {event.count} calls"
        found[f"kernel_{place}"] = f"{event.key[:60]}: {spent}"
    return found
