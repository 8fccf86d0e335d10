"""Small adapters as files would hold them."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from omniforcing.model.config import ADAPTABLE
from omniforcing.model.weights.lora import Factors, Lora


def tiny_lora(
    core: nn.Module, ends: Collection[str] = ADAPTABLE, rank: int = 2, seed: int = 0
) -> Lora:
    """Random changes of all layers of a transformer whose names have one of these ends."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, module in core.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(ends)):
            a = torch.randn(rank, module.in_features, generator=generator) / 4
            b = torch.randn(module.out_features, rank, generator=generator) / 4
            layers[name] = Factors(a, b)
    return Lora(Path("tiny.safetensors"), layers)


@torch.no_grad()
def add(core: nn.Module, lora: Lora, scale: float) -> None:
    """Add an adapter's changes to a transformer's own weights."""
    for name, factors in lora.layers.items():
        core.get_submodule(name).weight.add_(scale * factors.delta)  # type: ignore[operator]
