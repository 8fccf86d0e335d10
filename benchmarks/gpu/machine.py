"""The largest rates that this machine reaches today, to compare everything else with."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.rows import Figures, Measurement
from benchmarks.gpu.settings import PartSettings
from benchmarks.timing import seconds_of

WARM_UP, ROUNDS = 3, 10


def measurements(settings: PartSettings) -> list[Measurement]:
    """List matrix products in each precision, the copy bandwidth and the memory."""
    return [
        Measurement("matmul", lambda: matmul(settings), "time large matrix products", packages=()),
        Measurement("copy", lambda: copy(settings), "time a large copy", packages=()),
        Measurement("memory", lambda: memory(settings), "tell the memory", packages=()),
    ]


def matmul(settings: PartSettings) -> Figures:
    """Measure TFLOP/s of one large product of random matrices, the median of ten.

    In bf16, in fp32 with TF32 off, and in fp8 on a card that has it.
    """
    size = 512 if settings.small else 8192
    a = torch.randn(size, size, device=settings.device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=settings.device, dtype=torch.bfloat16)
    a32, b32 = a.float(), b.float()
    work = 2 * size**3 / 1e12
    figures: Figures = {
        "bf16_tflops": work / _median(settings, lambda: torch.mm(a, b)),
        "fp32_tflops": work / _median(settings, lambda: torch.mm(a32, b32)),
    }
    if settings.cuda and torch.cuda.get_device_capability() >= (8, 9):
        from omniforcing.model.inference.gpu import to_fp8

        a8, a_scale = to_fp8(a)
        b8, b_scale = to_fp8(b)

        def product() -> Tensor:
            return torch._scaled_mm(
                a8, b8.t(), a_scale, b_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
            )

        figures["fp8_tflops"] = work / _median(settings, product)
    return {**figures, "size": size}


def copy(settings: PartSettings) -> Figures:
    """Measure GB/s of a copy within the device's memory; bytes read and written both count."""
    count = 2**22 if settings.small else 2**30
    source = torch.randn(count, device=settings.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    seconds = _median(settings, lambda: target.copy_(source))
    return {"copy_gb_per_s": 2 * source.nbytes / seconds / 1e9, "megabytes": source.nbytes / 1e6}


def memory(settings: PartSettings) -> Figures:
    """Return the device's memory, and on a GPU how much of it is free."""
    if not settings.cuda:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return {"total_gb": total / 1e9}
    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    return {"total_gb": total / 1e9, "free_gb": free / 1e9, "capability": f"{major}.{minor}"}


def _median(settings: PartSettings, run: Callable[[], object]) -> float:
    """Return the median seconds of ten calls, after three that warm up."""
    for _ in range(WARM_UP):
        run()
    times = [seconds_of(run, settings.torch_device) for _ in range(ROUNDS)]
    return sorted(times)[ROUNDS // 2]
