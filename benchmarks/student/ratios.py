"""The student against its alternatives: how many times as long they take for equal blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import torch

from benchmarks.student.bench import StudentBench
from benchmarks.student.operations import bare_calls
from benchmarks.timing import seconds_of
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.options import InferenceOptions


def ratios(bench: StudentBench, rounds: int) -> dict[str, float]:
    """Time the plain and the bidirectional forward against the student, on one clip.

    The three run in turn, so that a busy machine slows all alike, and the fastest round counts.

    Returns:
        ``ratio_bidirectional`` and ``ratio_plain``: their seconds over the student's;
        ``difference_plain``: see ``difference``, of the plain forward's blocks.
    """
    ours = partial(bench.clip, bench.options, accelerate(bench.model, bench.options))
    error = difference(ours(), bench.plain_clip())  # this run also warms up
    runs: dict[str, Callable[[], object]] = {
        "ours": ours,
        "plain": bench.plain_clip,
        "bidirectional": bench.bidirectional_clip,
    }
    fastest = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            fastest[name] = min(fastest[name], seconds_of(run, bench.device))
    return {
        "ratio_bidirectional": fastest["bidirectional"] / fastest["ours"],
        "ratio_plain": fastest["plain"] / fastest["ours"],
        "difference_plain": error,
    }


def ratio_floor(bench: StudentBench, rounds: int) -> float:
    """Time a block's matrix products and attentions alone; return their seconds over the block's.

    Both in turn, the fastest of ``rounds``.
    """
    blocks, calls = bench.block_seconds(bench.options), bare_calls(bench)

    def bare() -> None:
        with torch.inference_mode():
            for call in calls:
                call()

    block = floor = float("inf")
    for _ in range(rounds):
        block = min(block, next(blocks))
        floor = min(floor, seconds_of(bare, bench.device))
    return floor / block


def ratios_without(bench: StudentBench, rounds: int) -> dict[str, float]:
    """Time a block with each speed-up switched off; return its seconds over the student's by name.

    Raises:
        OmniForcingError: if the blocks without a speed-up are not the student's.
    """
    ours = bench.clip(bench.options, accelerate(bench.model, bench.options))
    without = bench.options.without_each()
    for name, options in without.items():
        blocks = bench.clip(options, accelerate(bench.model, options))
        check_equal(bench, difference(ours, blocks), name)
    baseline = ""
    fastest = _fastest_blocks(bench, {baseline: bench.options, **without}, rounds)
    return {name: fastest[name] / fastest[baseline] for name in without}


def _fastest_blocks(
    bench: StudentBench, variants: dict[str, InferenceOptions], rounds: int
) -> dict[str, float]:
    """Return the seconds of the fastest of ``rounds`` blocks with each variant."""
    if bench.device.type == "cuda":
        # Each variant copies weights, and a GPU holds one copy at a time: no interleaving.
        fastest = {}
        for name, options in variants.items():
            fastest[name] = min(islice(bench.block_seconds(options), rounds))
        return fastest
    streams = {name: bench.block_seconds(options) for name, options in variants.items()}
    fastest = dict.fromkeys(variants, float("inf"))
    for _ in range(rounds):
        for name, stream in streams.items():
            fastest[name] = min(fastest[name], next(stream))
    return fastest


def difference(blocks: list[Latents], others: list[Latents]) -> float:
    """Return the largest absolute difference of two streams over the first's largest value."""
    largest, errors = 0.0, []
    for block, other in zip(blocks, others, strict=True):
        for x, y in zip(block, other, strict=True):
            largest = max(largest, float(x.abs().max()))
            errors.append(float((x - y).abs().max()))
    return float(np.max(errors)) / largest  # unlike Python's, this maximum keeps NaN


def tolerance(bench: StudentBench) -> float:
    """Return the largest ``difference`` of blocks that count as equal; fp8 is coarser by design."""
    if bench.options.fp8:
        return float("inf")
    return 1e-4 if bench.case.dtype is torch.float32 else 0.1


def check_equal(bench: StudentBench, error: float, name: str) -> None:
    """Refuse to time an alternative that computes something else.

    Raises:
        OmniForcingError: if ``error`` is more than rounding explains.
    """
    if not error <= tolerance(bench):  # NaN is refused too
        raise OmniForcingError(
            "benchmarks.results-differ",
            f"the blocks of {name!r} differ from the student's by {error:.2g} of their size",
        )
