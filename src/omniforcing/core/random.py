"""Random numbers that depend on seed, name and step alone: resuming needs no random state."""

from __future__ import annotations

import hashlib

import torch


def step_seed(seed: int, step: int, stream: str = "") -> int:
    """Derive a 63-bit seed for one step of a named stream of random numbers."""
    text = f"{seed}/{stream}/{step}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def step_generator(
    seed: int, step: int, stream: str = "", device: str | torch.device = "cpu"
) -> torch.Generator:
    """Make a generator for one step of a named stream of random numbers."""
    return torch.Generator(device=device).manual_seed(step_seed(seed, step, stream))
