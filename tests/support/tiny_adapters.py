"""Adapters on tiny models."""

import torch

from omniforcing.model.transformer import DualStream
from omniforcing.training.adapters import AdaptedStream, build_layers
from omniforcing.training.config import AdapterConfig

DIGEST = "0123456789abcdef" * 4
SMALL = AdapterConfig(rank=2)


def adapted(
    base: DualStream,
    config: AdapterConfig = SMALL,
    digest: str = DIGEST,
    sinks: int = 0,
    seed: int = 0,
) -> AdaptedStream:
    """A model on the weights of ``base``, its adapter as it starts."""
    return AdaptedStream(base, build_layers(base, config, seed), digest, sinks)


@torch.no_grad()
def randomised(model: AdaptedStream, seed: int = 0) -> AdaptedStream:
    """The model with factors that change something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model
