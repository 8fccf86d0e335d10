"""The 19B student with random weights: how fast it streams, with which speed-ups, in which layouts.

Rows stream latents alone unless their name says "decoded" (`decoded.py`) or they profile a block
(`profiling.py`). Figures: `fps` frames over seconds of work in steady state; `first_s`, `ttfc_s`
seconds from the prompt's features to block 0 and block 1, in a process that has streamed before;
`block_*`, `steps_ms`, `refresh_ms` times of a block; `gb_early`, `gb_late` the allocator's peak in
the first and last five measured blocks; `on` the speed-ups beyond the usual ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks.gpu.bench import best_options, in_layout, open_bench, switched
from benchmarks.gpu.decoded import decoded
from benchmarks.gpu.networks import student_case
from benchmarks.gpu.profiling import attention_kernels, by_operation, largest_kernels
from benchmarks.gpu.rows import Figures, Measurement, OutOfBounds
from benchmarks.gpu.settings import PartSettings
from benchmarks.student.bench import StudentBench
from benchmarks.student.cases import Case
from benchmarks.student.operations import block_operations
from benchmarks.student.ratios import ratios, tolerance
from omniforcing.core.errors import OmniForcingError
from omniforcing.model.options import InferenceOptions

LONG, SHORT = 62, 12  # blocks: to block 60 and beyond; in steady state alone
PLENTY = 400.0  # seconds of the part's time with which row `eager` streams LONG
FEWER_STEPS = {3: (1.0, 0.75, 0.5), 2: (1.0, 0.5)}


def measurements(settings: PartSettings) -> list[Measurement]:
    """List the student's rows, the most telling first."""

    def with_option(name: str) -> partial[Figures]:
        options = replace(InferenceOptions(), **{name: True})
        return partial(stream, settings, student_case(settings), options)

    plain = partial(plain_forward, settings)
    thirds = partial(decoded, settings, causal=True, layout="thirds")
    look_ahead = partial(decoded, settings, causal=False, layout="merged")
    return [
        Measurement("eager", partial(eager, settings), "stream"),
        Measurement("plain forward", plain, "time the plain cached forward of public code"),
        Measurement("fp8", with_option("fp8"), "stream with fp8 products", cuda=True),
        Measurement(
            "concurrent",
            with_option("concurrent"),
            "stream with audio and video in parallel",
            cuda=True,
        ),
        Measurement(
            "compiled",
            with_option("compiled"),
            "compile and replay CUDA graphs",
            cuda=True,
            limit=150,
        ),
        Measurement(
            "best",
            partial(best_stream, settings),
            "stream with all that is faster",
            cuda=True,
            limit=240,
        ),
        Measurement(
            "decoded",
            partial(decoded, settings, causal=True, layout="merged"),
            "stream frames and samples",
        ),
        Measurement("decoded, thirds", thirds, "stream a third of a second per block"),
        Measurement("by operation", partial(by_operation, settings), "profile one block"),
        Measurement(
            "thirds",
            partial(other_layout, settings, "thirds"),
            "stream latents, a third of a second per block",
        ),
        Measurement(
            "3 steps", partial(fewer_steps, settings, 3), "stream with three steps a block"
        ),
        Measurement("2 steps", partial(fewer_steps, settings, 2), "stream with two steps a block"),
        Measurement(
            "attention kernels",
            partial(attention_kernels, settings),
            "time flash against cuDNN",
            cuda=True,
        ),
        Measurement(
            "largest kernels",
            partial(largest_kernels, settings),
            "name the five that take most",
            cuda=True,
        ),
        Measurement(
            "prefix", partial(other_layout, settings, "prefix"), "stream in the paper's layout"
        ),
        Measurement("decoded, look-ahead", look_ahead, "decode as released"),
    ]


def eager(settings: PartSettings) -> Figures:
    """Stream with the usual speed-ups, to block 60 if time allows; count a block's operations."""
    case = student_case(settings)
    bench, remark = open_bench(settings, case, InferenceOptions(), release=False)
    operations = block_operations(bench)
    long = settings.left > PLENTY
    count = LONG if long else bench.first + SHORT
    if settings.small:
        count = 8
    figures = stream_figures(settings, bench, count, operations, flatness=long)
    return {**figures, "tflop_per_block": operations / 1e12, **remark}


def stream(
    settings: PartSettings, case: Case, options: InferenceOptions, blocks: int | None = None
) -> Figures:
    """Stream with some speed-ups, the weights in the form alone that these use.

    Args:
        settings: of the part.
        case: what to stream.
        options: the speed-ups.
        blocks: length of a stream whose flatness is measured; None: a short one.
    """
    bench, remark = open_bench(settings, case, options, release=True)
    count = bench.first + (4 if settings.small else SHORT) if blocks is None else blocks
    figures = stream_figures(
        settings, bench, count, _operations(settings, case), flatness=blocks is not None
    )
    return {**figures, "on": switched(options), **remark}


def _operations(settings: PartSettings, case: Case) -> float | None:
    """Scale the operations that row `eager` counted to a case's number of forwards.

    None where they were not counted, or blocks have another size.
    """
    counted = settings.figure("student", "eager", "tflop_per_block")
    usual = student_case(settings).rollout
    if not counted or case.rollout.table is not usual.table:
        return None
    forwards = len(case.rollout.sigmas) + 1  # one more refreshes the cache
    return float(counted * 1e12 * forwards / (len(usual.sigmas) + 1))


def stream_figures(
    settings: PartSettings,
    bench: StudentBench,
    count: int,
    operations: float | None,
    flatness: bool,
) -> Figures:
    """Measure a stream of ``count`` blocks, after one that warms up.

    Args:
        settings: of the part.
        bench: what to stream.
        count: blocks.
        operations: of one block in steady state; None: its share of the matmul rate is left out.
        flatness: whether the stream is long enough to compare its end with its beginning.
    """
    bench.warm_up()
    cost = bench.stream(count)
    peak = settings.figure("machine", "matmul", "bf16_tflops")
    figures: Figures = {
        "fps": cost.fps,
        "first_s": cost.blocks[0].elapsed,
        "ttfc_s": cost.ttfc,
        "block_p50_ms": 1000 * cost.percentile(50),
        "block_p95_ms": 1000 * cost.percentile(95),
        "steps_ms": 1000 * cost.median("steps"),
        "refresh_ms": 1000 * cost.median("refresh"),
        "gb_early": max(block.memory for block in cost.steady[:5]) / 1e9,
        "gb_late": max(block.memory for block in cost.steady[-5:]) / 1e9,
        "blocks": len(cost.blocks),
    }
    if flatness:
        figures["flatness"] = cost.flatness
    if operations and peak:
        figures["matmul_share"] = operations / cost.median("total") / (peak * 1e12)
    return figures


def plain_forward(settings: PartSettings) -> Figures:
    """Time the plain cached and diffusers' bidirectional forward against ours, on one clip.

    Raises:
        OutOfBounds: if the plain forward computes something else.
    """
    case = student_case(settings)
    # The plain forward sees the whole clip, so ours must too.
    case = replace(case, rollout=replace(case.rollout, window=5, horizon=6))
    bench, remark = open_bench(settings, case, InferenceOptions(), release=False)
    figures: Figures = {**ratios(bench, 2), **remark}
    bound = tolerance(bench)
    if not figures["difference_plain"] <= bound:
        raise OutOfBounds(
            figures,
            f"the plain forward's blocks differ by more than {bound:g} of the largest value",
        )
    return figures


def best_stream(settings: PartSettings) -> Figures:
    """Stream to block 60 with every speed-up that is faster by itself.

    Raises:
        OmniForcingError: if none is.
    """
    options = best_options(settings)
    if switched(options) == "usual":
        raise OmniForcingError(
            "benchmarks.no-speed-up", "no speed-up was measured to be faster than eager"
        )
    figures = stream(settings, student_case(settings), options, LONG)
    eager_fps = settings.figure("student", "eager", "fps")
    plain_ratio = settings.figure("student", "plain forward", "ratio_plain")
    if eager_fps and plain_ratio:  # the plain forward was timed against eager in this run
        figures["ratio_plain"] = figures["fps"] / eager_fps * plain_ratio
    return figures


def fewer_steps(settings: PartSettings, steps: int) -> Figures:
    """Stream with fewer denoising steps per block."""
    case = student_case(settings)
    case = replace(case, rollout=replace(case.rollout, sigmas=FEWER_STEPS[steps]))
    return stream(settings, case, best_options(settings))


def other_layout(settings: PartSettings, layout: str) -> Figures:
    """Stream in another block table, its window as many seconds long."""
    return stream(settings, in_layout(student_case(settings), layout), best_options(settings))
