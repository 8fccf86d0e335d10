"""Frozen weights in fewer bytes: in bf16, or in int8 with a scale per output.

Autocast rounds a frozen weight to bf16 for every product, so holding it so changes no result. int8
halves the bytes once more and changes the weights by up to a 254th of the largest of each output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.model.transformer import DualStream

LARGEST = 127


class _Product(torch.autograd.Function):
    """``x @ weight.T``; what autograd keeps for the backward pass is the int8 weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return x @ weight.to(x.dtype).t() * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * scale.to(gradient.dtype) @ weight.to(gradient.dtype), None, None


class Int8Linear(nn.Linear):
    """A frozen linear layer with weights in int8, in the precision of their products for each."""

    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        # A trace of memory runs on the meta device, which has no autocast.
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        out = _Product.apply(x, self.weight, self.scale)
        return out if self.bias is None else out + self.bias.to(out.dtype)


@torch.no_grad()
def quantise(linear: nn.Linear) -> None:
    """Hold a linear layer's weights in int8, in place: whoever refers to the layer sees it."""
    weight = linear.weight
    scale = weight.abs().amax(1).float().clamp_min_(1e-12) / LARGEST
    rounded = (weight / scale[:, None]).round_().to(torch.int8)
    linear.weight = nn.Parameter(rounded, requires_grad=False)
    linear.register_buffer("scale", scale)
    linear.__class__ = Int8Linear


def hold_frozen(model: DualStream, precision: str) -> None:
    """Hold the linear layers of a frozen model's blocks in fewer bytes, in place.

    Nearly all weights are there. Norms and tables, which autocast leaves in fp32, stay so, as does
    the input projection, whose precision decides that of the latents.

    Args:
        model: the model.
        precision: ``fp32`` leaves it as it is, ``bf16`` rounds weights and biases, ``int8`` the
            weights.
    """
    for module in model.core.transformer_blocks.modules():
        # A model that is the base of several roles comes more than once.
        if not isinstance(module, nn.Linear) or isinstance(module, Int8Linear):
            continue
        if precision == "bf16":
            module.to(torch.bfloat16)
        if precision == "int8":
            quantise(module)
