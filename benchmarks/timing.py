"""How benchmarks take time and memory: one stopwatch, and memory of this process or of a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch


class Clock:
    """Stopwatch that starts when it is created.

    A GPU runs behind the Python code that queues its work, so every reading waits for the queued
    work first.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start = self._now()

    def elapsed(self) -> float:
        """Return the seconds since creation, with all work queued until now finished."""
        return self._now() - self._start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Run a function once and return the seconds that it takes."""
    clock = Clock(device)
    run()
    return clock.elapsed()


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(device: torch.device) -> int:
    """Return the peak since the last call on a GPU; on a CPU what the process holds now."""
    if device.type != "cuda":
        return resident_bytes()
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
