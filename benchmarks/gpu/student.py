"""The 19B student with random weights: how fast it streams, with which speed-ups, in which layouts, and where the time goes.

Latents alone unless a row says otherwise. The clock of TTFC starts with the prompt's features and stops when block 1 is
there (B0 + B1), in a process that has streamed before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from math import floor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import LTX2VideoTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
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
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import LAYOUTS
from omniforcing.evaluation.speed import stalls, stream_speed
from omniforcing.model.attention import SITES
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout
from omniforcing.streaming.decoding import Decoding
from omniforcing.streaming.generation import Generation
from omniforcing.streaming.live import Stream, StreamParts

LONG, SHORT = 62, 12  # blocks: to block 60 and beyond; measured after the window is full
PLENTY = 400.0  # seconds of the part's time with which every stream may be a long one
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
            streamed,
            setup,
            student_case(setup),
            replace(InferenceOptions(), **dict.fromkeys(on, True)),
        )

    fast = partial(best, setup)
    return [
        made("eager", partial(eager, setup), "stream"),
        made(
            "plain forward", partial(plain, setup), "time the plain cached forward of public code"
        ),
        made("fp8", stream("fp8"), "stream with fp8 products", cuda=True),
        made("concurrent", stream("concurrent"), "stream with audio beside video", cuda=True),
        made(
            "compiled", stream("compiled"), "compile and replay CUDA graphs", cuda=True, limit=150
        ),
        made(
            "best",
            partial(best_stream, setup),
            "stream with all that is faster",
            cuda=True,
            limit=240,
        ),
        made("decoded", partial(decoded, setup, True, "merged"), "stream frames and samples"),
        made(
            "decoded, thirds",
            partial(decoded, setup, True, "thirds"),
            "stream a third of a second per block",
        ),
        made("by operation", partial(by_operation, setup), "profile one block"),
        made(
            "thirds",
            partial(other_layout, setup, "thirds"),
            "stream latents, a third of a second per block",
        ),
        made("3 steps", partial(fewer_steps, setup, 3), "stream with three steps a block"),
        made("2 steps", partial(fewer_steps, setup, 2), "stream with two steps a block"),
        made(
            "attention kernels",
            partial(attention_kernels, setup),
            "time flash against cuDNN",
            cuda=True,
        ),
        made(
            "largest kernels",
            partial(kernels, setup, fast),
            "name the five that take most",
            cuda=True,
        ),
        made("prefix", partial(other_layout, setup, "prefix"), "stream in the paper's layout"),
        made("decoded, look-ahead", partial(decoded, setup, False, "merged"), "decode as released"),
    ]


def eager(setup: Setup) -> Figures:
    """The usual speed-ups, to block 60 where there is time, with the operations that a block takes."""
    case = student_case(setup)
    bench, remark = opened(setup, case, InferenceOptions(), release=False)
    operations = block_operations(bench)
    long = LONG if setup.left > PLENTY else bench.first + SHORT
    found = figures(setup, bench, 8 if setup.small else long, operations, flat=long == LONG)
    return {**found, "tflop_per_block": operations / 1e12, **remark}


def streamed(
    setup: Setup, case: Case, speed: InferenceOptions, blocks: int | None = None
) -> Figures:
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
        "gb_early": max(block.memory for block in steady[:5]) * 2**20 / 1e9,
        "gb_late": max(block.memory for block in steady[-5:]) * 2**20 / 1e9,
        "blocks": len(blocks),
    }
    if flat:
        found["flatness"] = _p95(steady[-10:]) / _p95(steady[:11])
    if operations and peak:
        found["matmul_share"] = operations / float(np.median(work)) / (peak * 1e12)
    return found


def _p95(blocks: Iterable[BlockCost]) -> float:
    return float(np.percentile([block.total for block in blocks], 95))


def opened(
    setup: Setup, case: Case, speed: InferenceOptions, release: bool
) -> tuple[Bench, Figures]:
    """A bench for a case, with as many layers as the card's memory holds; the remark says so where they are fewer."""
    remark: Figures = {}
    if setup.cuda:
        total = USABLE * torch.cuda.mem_get_info()[1]
        few, all_of_them = (
            needed(replace(case, core={**case.core, "num_layers": n}), release)
            for n in (1, _layers(case))
        )
        if all_of_them > total:
            layers = 1 + floor((total - few) * (_layers(case) - 1) / (all_of_them - few))
            if layers < 1:
                raise OmniForcingError(
                    "device.too-small",
                    f"one layer needs {few / 1e9:.0f} GB, the card has {total / 1e9:.0f} usable; "
                    "use a larger card",
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
    counts = table.total(table.ring(window) + 1)
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


def switched(speed: InferenceOptions) -> str:
    """The speed-ups beyond the usual ones."""
    usual = asdict(InferenceOptions())
    return " ".join(name for name, on in asdict(speed).items() if on and not usual[name]) or "usual"


def plain(setup: Setup) -> Figures:
    """How many times as long as ours the plain cached forward and diffusers' bidirectional one take for 16 video latents.

    Raises:
        Wrong: if the plain forward computes something else.
    """
    case = student_case(setup)
    # The plain forward sees all of the clip, so ours must too.
    case = replace(case, rollout=replace(case.rollout, window=5, horizon=6))
    bench, remark = opened(setup, case, InferenceOptions(), release=False)
    found: Figures = {**ratios(bench, 2), **remark}
    if not found["difference_plain"] <= allowed(bench):
        raise Wrong(
            found,
            f"the plain forward's blocks differ by more than {allowed(bench):g} of the largest value",
        )
    return found


def best(setup: Setup) -> InferenceOptions:
    """The usual speed-ups and those whose row shows them at least 2 % faster; all that were not measured stay off."""
    eager = setup.figure("student", "eager", "fps") or 0.0
    faster = [
        name for name in CANDIDATES if (setup.figure("student", name, "fps") or 0.0) > 1.02 * eager
    ]
    return (
        replace(InferenceOptions(), **dict.fromkeys(faster, True))
        if setup.cuda and eager
        else InferenceOptions()
    )


def best_stream(setup: Setup) -> Figures:
    """All that is faster by itself, together, to block 60."""
    speed = best(setup)
    if switched(speed) == "usual":
        raise OmniForcingError(
            "benchmarks.no-speed-up", "no speed-up was measured to be faster than eager"
        )
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
    return streamed(setup, in_layout(student_case(setup), name), best(setup))


def in_layout(case: Case, name: str) -> Case:
    """A case in another block table, its window and horizon as many seconds."""
    table, cycle = LAYOUTS[name], len(LAYOUTS[name].cycle)
    window, horizon = case.rollout.window * cycle, case.rollout.horizon * cycle
    return replace(case, rollout=replace(case.rollout, table=table, window=window, horizon=horizon))


def decoded(setup: Setup, causal: bool, layout: str) -> Figures:
    """The stream as a viewer gets it, by the product's own threads: decoding overlaps generation.

    The first stream of the process warms up; what the second one's first chunk takes is TTFC.
    """
    case = in_layout(student_case(setup), layout)
    speed = replace(best(setup), compiled=False)  # recording would fill a short stream
    bench, remark = opened(setup, case, speed, release=True)
    codec = streaming_codec(setup, causal)
    seconds = 3.0 if setup.small else 12.0

    def chunks(length: float) -> list[Any]:
        limits = round(24 * length) + 1, round(codec.sample_rate * length)
        blocks = case.rollout.table.blocks_for_seconds(length)
        asked = time.perf_counter()
        parts = StreamParts(
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
        with Stream(parts) as opened_stream:
            return list(opened_stream)

    cold = reached(chunks(2.0), sound=False)
    found = chunks(seconds)
    timings = [chunk.timing for chunk in found]
    speeds = stream_speed(timings)
    steady = timings[1:] or timings
    return {
        "fps": speeds.fps,
        "first_s": timings[0].elapsed,
        "ttfc_s": reached(found, sound=False),
        "picture_and_sound_s": reached(found, sound=True),
        "cold_ttfc_s": cold,
        "block_p50_ms": 1000 * speeds.block_p50_s,
        "block_p95_ms": 1000 * speeds.block_p95_s,
        "decode_ms": 1000 * float(np.median([timing.decode for timing in steady])),
        "stalls": stalls(timings),
        "latents_ahead": codec.video_reach.ahead,
        "blocks": len(found),
        "on": switched(speed),
        **remark,
    }


def reached(chunks: list[Any], *, sound: bool) -> float:
    """Seconds until a picture has moved, and with ``sound`` until samples are there too."""
    frames = samples = 0
    for chunk in chunks:
        frames, samples = frames + len(chunk.frames), samples + chunk.samples.shape[1]
        if frames > 1 and (samples or not sound):
            return float(chunk.timing.elapsed)
    return float("inf")


def profiled(setup: Setup, speed: InferenceOptions) -> Any:
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
    """Milliseconds of one block by kind of operation: device time on a GPU, its own on a CPU."""
    profiler = profiled(setup, InferenceOptions())
    spent = dict.fromkeys(
        ("attention", "feed_forward", "projections", "adaln_norms_rope", "copies"), 0.0
    )
    events = profiler.key_averages(group_by_input_shape=True)
    for event in events:
        own = event.self_device_time_total if setup.cuda else event.self_cpu_time_total
        if event.key.startswith(("aten::", "mkldnn::")):
            spent[kind_of(event.key, event.input_shapes)] += own / 1000
    if not sum(spent.values()):
        raise OmniForcingError(
            "benchmarks.empty-profile", "torch's profiler saw nothing run; is CUPTI missing?"
        )
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


def kernels(setup: Setup, chosen: partial[InferenceOptions]) -> Figures:
    """The five kernels that take most of a block, with milliseconds and share."""
    speed = replace(chosen(), compiled=False)
    events = [
        e
        for e in profiled(setup, speed).key_averages()
        if "CUDA" in str(e.device_type) and e.self_device_time_total
    ]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    if not total:
        raise OmniForcingError(
            "benchmarks.empty-profile", "torch's profiler saw no kernel; is CUPTI missing?"
        )
    found: Figures = {"kernels_ms": total / 1000, "on": switched(speed)}
    for place, event in enumerate(events[:5], 1):
        share = event.self_device_time_total / total
        spent = f"{event.self_device_time_total / 1000:.1f} ms, {share:.0%}, {event.count} calls"
        found[f"kernel_{place}"] = f"{event.key[:60]}: {spent}"
    return found


def attention_kernels(setup: Setup) -> Figures:
    """Milliseconds of one video self-attention in full window with each kernel, and of a thread's first call.

    A stream's thread calls attention in a dozen shapes before its window is full. A kernel that
    prepares each shape anew in each thread pays for it in the first seconds of every stream.
    """
    case = student_case(setup)
    heads, width = case.core["num_attention_heads"], case.core["attention_head_dim"]
    spatial = case.rollout.grid[0] * case.rollout.grid[1]
    full = case.rollout.window + 1
    seen = [
        case.rollout.table.counts(i) for i in case.rollout.table.visible(full, case.rollout.window)
    ]
    own, keys = (
        spatial * n for n in (case.rollout.table.counts(full).video, sum(c.video for c in seen))
    )
    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    q = torch.randn(1, heads, own, width, device=setup.device, dtype=torch.bfloat16)
    found: Figures = {}
    for place, (name, kernel) in enumerate(kernels.items()):
        # Other lengths for the first calls, which nothing has prepared.
        k = torch.randn(
            1, heads, keys + 128 * (place + 1), width, device=setup.device, dtype=torch.bfloat16
        )

        def call(count: int, kernel: SDPBackend = kernel, k: torch.Tensor = k) -> float:
            with sdpa_kernel([kernel]):
                torch.cuda.synchronize()
                began = time.perf_counter()
                for _ in range(count):
                    F.scaled_dot_product_attention(q, k, k)
                torch.cuda.synchronize()
            return 1000 * (time.perf_counter() - began) / count

        call(1)
        with ThreadPoolExecutor(1) as thread:
            found[f"{name}_new_thread_ms"] = thread.submit(call, 1).result()
        found[f"{name}_ms"] = min(call(20) for _ in range(3))
    return {**found, "queries": own, "keys": keys}
