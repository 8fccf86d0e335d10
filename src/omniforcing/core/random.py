"""Random streams that depend on (seed, name, step) alone, so that resuming a run needs no random state."""

from __future__ import annotations

import hashlib

import torch


def step_seed(seed: int, step: int, stream: str = "") -> int:
    """A 63-bit seed for one step of one named stream."""
    text = f"{seed}/{stream}/{step}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def step_generator(
    seed: int, step: int, stream: str = "", device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator for one step of one named stream; the same arguments give the same numbers."""
    return torch.Generator(device=device).manual_seed(step_seed(seed, step, stream))
