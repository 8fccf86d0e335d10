"""CUDA streams for threads that compute at the same time, and waiting for them.

Work that two threads give to one CUDA stream runs one after the other. Each thread of a media
stream therefore takes a CUDA stream of its own. All functions do nothing on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Idle CUDA streams by device and purpose. PyTorch's allocator gives memory that was freed on a
# CUDA stream back to that stream alone, so the next user of the same purpose takes over an idle
# one, with its memory, instead of allocating as much again.
_idle: dict[tuple[str, str], list[torch.cuda.Stream]] = {}


@contextmanager
def own_cuda_stream(device: str, purpose: str) -> Iterator[None]:
    """Run the body on a CUDA stream that no other thread uses meanwhile.

    Args:
        device: such as ``cuda:0``; on a CPU the body runs as it is.
        purpose: what the CUDA stream is for; streams of one purpose are reused.
    """
    if not device.startswith("cuda"):
        yield
        return
    idle = _idle.setdefault((device, purpose), [])
    stream = idle.pop() if idle else torch.cuda.Stream(device)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        idle.append(stream)


def synchronise(device: str) -> None:
    """Wait until the GPU has done what this thread gave it.

    Another thread may use the results then, and a clock read afterwards tells the true time.
    """
    if device.startswith("cuda"):
        torch.cuda.current_stream(device).synchronize()
