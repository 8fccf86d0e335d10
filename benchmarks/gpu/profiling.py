"""Where the 19B student's time goes: a profile of one block, and attention kernels alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import best_options, open_bench, switched
from benchmarks.gpu.networks import student_case
from benchmarks.gpu.rows import Figures
from benchmarks.gpu.settings import PartSettings
from benchmarks.timing import Clock
from omniforcing.core.errors import OmniForcingError
from omniforcing.model.options import InferenceOptions

KINDS = ("attention", "feed_forward", "projections", "adaln_norms_rope", "copies")
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def profile_block(settings: PartSettings, options: InferenceOptions) -> Any:
    """Run one block in steady state under torch's profiler and return the profiler."""
    bench, _ = open_bench(settings, student_case(settings), options, release=True)
    rollout = bench.rollout()
    for _ in range(bench.first):
        next(rollout)
    activities = [ProfilerActivity.CPU]
    if settings.cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as profiler:
        next(rollout)
        if settings.cuda:
            torch.cuda.synchronize()
    return profiler


def by_operation(settings: PartSettings) -> Figures:
    """Measure one block's milliseconds by kind of operation: device time, or a CPU's own.

    Raises:
        OmniForcingError: if the profiler is blind on this machine.
    """
    events = profile_block(settings, InferenceOptions()).key_averages(group_by_input_shape=True)
    milliseconds = dict.fromkeys(KINDS, 0.0)
    launches = 0
    for event in events:
        own = event.self_device_time_total if settings.cuda else event.self_cpu_time_total
        if event.key.startswith(("aten::", "mkldnn::")):
            milliseconds[kind_of(event.key, event.input_shapes)] += own / 1000
        if "LaunchKernel" in event.key:
            launches += event.count
    if not sum(milliseconds.values()):
        raise OmniForcingError(
            "benchmarks.empty-profile", "torch's profiler saw nothing run; is CUPTI missing?"
        )
    figures: Figures = {f"{kind}_ms": value for kind, value in milliseconds.items()}
    if settings.cuda:
        figures["launches"] = launches
    return figures


def kind_of(operation: str, shapes: list[list[int]]) -> str:
    """Tell what an operation is for.

    Args:
        operation: its name, such as ``aten::addmm``.
        shapes: of its inputs; the weight is the last matrix.
    """
    if "attention" in operation:
        return "attention"
    if "gelu" in operation:
        return "feed_forward"
    if "mm" in operation or "linear" in operation:
        weight = next((shape for shape in reversed(shapes) if len(shape) == 2), [1, 1])
        # The feed-forward's weights alone are four times as wide on one side as on the other.
        return "feed_forward" if max(weight) == 4 * min(weight) else "projections"
    return "copies" if "copy" in operation else "adaln_norms_rope"


def largest_kernels(settings: PartSettings) -> Figures:
    """Name the five kernels that take most of a block, with milliseconds, share and calls.

    Raises:
        OmniForcingError: if the profiler sees no kernel.
    """
    # A replayed CUDA graph is one event; its kernels show when layers run by themselves.
    options = replace(best_options(settings), compiled=False)
    kernels = []
    for event in profile_block(settings, options).key_averages():
        if "CUDA" in str(event.device_type) and event.self_device_time_total:
            kernels.append(event)
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    if not total:
        raise OmniForcingError(
            "benchmarks.empty-profile", "torch's profiler saw no kernel; is CUPTI missing?"
        )
    figures: Figures = {"kernels_ms": total / 1000, "on": switched(options)}
    for place, event in enumerate(kernels[:5], 1):
        own = event.self_device_time_total
        cost = f"{own / 1000:.1f} ms, {own / total:.0%}, {event.count} calls"
        figures[f"kernel_{place}"] = f"{event.key[:60]}: {cost}"
    return figures


def attention_kernels(settings: PartSettings) -> Figures:
    """Time one video self-attention in full window with each kernel, and a new thread's first call.

    A stream's thread calls attention in a dozen shapes before its window is full. A kernel that
    prepares each shape anew in each thread pays for it in the first seconds of every stream.
    """
    case = student_case(settings)
    heads, width = case.core["num_attention_heads"], case.core["attention_head_dim"]
    table, window = case.rollout.table, case.rollout.window
    spatial = case.rollout.grid[0] * case.rollout.grid[1]
    full = window + 1
    queries = spatial * table.counts(full).video
    keys = spatial * sum(table.counts(index).video for index in table.visible(full, window))
    device = settings.torch_device

    def milliseconds(kernel: SDPBackend, q: torch.Tensor, k: torch.Tensor, count: int) -> float:
        with sdpa_kernel([kernel]):
            clock = Clock(device)
            for _ in range(count):
                F.scaled_dot_product_attention(q, k, k)
            return 1000 * clock.elapsed() / count

    q = torch.randn(1, heads, queries, width, device=device, dtype=torch.bfloat16)
    figures: Figures = {}
    for place, (name, kernel) in enumerate(KERNELS.items(), 1):
        # A length of its own, which no earlier call has prepared.
        length = keys + 128 * place
        k = torch.randn(1, heads, length, width, device=device, dtype=torch.bfloat16)
        milliseconds(kernel, q, k, 1)
        with ThreadPoolExecutor(1) as thread:
            first_call = thread.submit(milliseconds, kernel, q, k, 1)
            figures[f"{name}_new_thread_ms"] = first_call.result()
        figures[f"{name}_ms"] = min(milliseconds(kernel, q, k, 20) for _ in range(3))
    return {**figures, "queries": queries, "keys": keys}
