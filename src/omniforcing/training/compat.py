"""Private APIs of libraries that training uses, each with its reason.

A test fails when the version of one of them moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr
from torch.utils._pytree import register_pytree_node
from torch.utils.checkpoint import checkpoint

# The versions whose private APIs these functions were written for; tests/test_compat.py holds
# them against the pins in constraints.txt.
REVIEWED = {"torch": "2.13.0", "diffusers": "0.42.1"}


def register_dataclass(kind: type[Any]) -> None:
    """Let torch find the tensors in a dataclass.

    FSDP looks for tensors in what a module's methods take and give, through torch's pytrees,
    whose public entry point (``torch.export``) is for exported programs alone.
    """
    names = [field.name for field in fields(kind)]

    def flatten(value: Any) -> tuple[list[Any], None]:
        return [getattr(value, name) for name in names], None

    register_pytree_node(kind, flatten, lambda values, _: kind(*values))


def scale_in_place(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply many tensors by one factor in a few kernels; torch has no public name for it."""
    torch._foreach_mul_(list(tensors), factor)


def adjusted_rate(group: dict[str, Any], shape: torch.Size) -> float:
    """Learning rate of torch's Muon for a matrix of ``shape``."""
    return _adjust_lr(group["lr"], group["adjust_lr_fn"], shape)


def checkpoint_blocks(decoder: nn.Module) -> None:
    """Let a video decoder of diffusers keep its blocks' inputs alone and recompute the rest.

    diffusers' own switch is a method of whole VAEs, and would recompute inside of the blocks too.
    """
    switches: Any = decoder
    switches._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    switches.gradient_checkpointing = True
