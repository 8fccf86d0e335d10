"""What this machine gives today: the largest rates that anything below can be compared with."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.rows import Figures, Measurement
from benchmarks.gpu.setup import Setup

ROUNDS = 10


def measurements(setup: Setup) -> list[Measurement]:
    """Matrix products in each precision, and the copy bandwidth."""
    return [
        Measurement("matmul", lambda: matmul(setup), "time large matrix products", packages=()),
        Measurement("copy", lambda: copy(setup), "time a large copy", packages=()),
        Measurement("memory", lambda: memory(setup), "tell the memory", packages=()),
    ]


def matmul(setup: Setup) -> Figures:
    """TFLOP/s of one large product of random matrices, median of ten: bf16, fp32 (TF32 off), and fp8 where there is one."""
    size = 512 if setup.small else 8192
    bf16 = [torch.randn(size, size, device=setup.device, dtype=torch.bfloat16) for _ in range(2)]
    fp32 = [x.float() for x in bf16]
    work = 2 * size**3 / 1e12
    found: Figures = {"bf16_tflops": work / _median(setup, lambda: torch.mm(*bf16))}
    found["fp32_tflops"] = work / _median(setup, lambda: torch.mm(*fp32))
    if setup.cuda and torch.cuda.get_device_capability() >= (8, 9):
        from omniforcing.model.inference.gpu import to_fp8

        (a, a_scale), (b, b_scale) = (to_fp8(x) for x in bf16)

        def product() -> Tensor:
            return torch._scaled_mm(
                a, b.t(), a_scale, b_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
            )

        found["fp8_tflops"] = work / _median(setup, product)
    return {**found, "size": size}


def copy(setup: Setup) -> Figures:
    """GB/s of a copy from device memory to device memory, bytes read and bytes written counted."""
    count = 2**22 if setup.small else 2**30
    source = torch.randn(count, device=setup.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return {
        "copy_gb_per_s": 2 * source.nbytes / _median(setup, lambda: target.copy_(source)) / 1e9,
        "megabytes": source.nbytes / 1e6,
    }


def memory(setup: Setup) -> Figures:
    """Memory of the device, and how much of it is free."""
    if not setup.cuda:
        import os

        pages, size = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
        return {"total_gb": pages * size / 1e9}
    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    return {"total_gb": total / 1e9, "free_gb": free / 1e9, "capability": f"{major}.{minor}"}


def _median(setup: Setup, run: Callable[[], object]) -> float:
    """Median seconds of a call, after three that warm up."""
    times = []
    for index in range(3 + ROUNDS):
        _wait(setup)
        began = time.perf_counter()
        run()
        _wait(setup)
        if index >= 3:
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _wait(setup: Setup) -> None:
    if setup.cuda:
        torch.cuda.synchronize()
