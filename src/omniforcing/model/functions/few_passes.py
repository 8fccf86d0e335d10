"""Norm, GELU, rotation and adaLN in few passes, forward and backward, on a CPU in fp32.

At small sizes a training step on a CPU spends more time on these than on matrix products, and most
of it in what autograd makes of their formulas. Everywhere else they are what torch and diffusers
compute; either way the same numbers up to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# tanh-GELU is x * sigmoid(_LINEAR * x + _CUBIC * x^3).
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR
_PRECISIONS = (torch.float32, torch.float64)


def in_few_passes(*tensors: Tensor) -> bool:
    """Whether functions of these tensors are computed as this module does."""
    if torch.compiler.is_compiling():
        return False
    return all(x.device.type == "cpu" and x.dtype in _PRECISIONS for x in tensors)


def multiply_add(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift``, in one pass where all have one precision."""
    if in_few_passes(x, scale, shift):
        return torch.addcmul(shift, x, scale)
    return x * scale + shift


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Root mean square norm of ``x [..., C]`` on a CPU, times ``weight [C]``."""
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-any-return]


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return _Gelu.apply(x) if in_few_passes(x) else F.gelu(x, approximate="tanh")


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate the first half of each head's channels with the second half, on a CPU.

    Args:
        x: queries or keys ``[B, N, C]``.
        cos: cosines ``[N, C]``, those of a head twice.
        sin: sines ``[N, C]``, those of a head's first half negative.
        heads: number of heads.
    """
    return _RotateHalves.apply(x, cos, sin, heads)  # type: ignore[no-any-return]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed if weight is None else normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normed, inverse, weight = ctx.saved_tensors
        product, for_weight = grad * normed, None
        if weight is not None:
            for_weight = product.flatten(0, -2).sum(0)
            product, grad = product.mul_(weight), grad * weight
        mean = product.mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, mean, value=-1).mul_(inverse), for_weight, None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sigmoid = (x * x).mul_(_CUBIC).add_(_LINEAR).mul_(x).sigmoid_()
        ctx.save_for_backward(x, sigmoid)
        return x * sigmoid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, sigmoid = ctx.saved_tensors
        # sigmoid * (1 + x * (1 - sigmoid) * inner'), inner' = _LINEAR + 3 * _CUBIC * x^2
        slope = (x * x).mul_(3 * _CUBIC).add_(_LINEAR).mul_(x)
        slope.addcmul_(slope, sigmoid, value=-1).add_(1)
        return slope.mul_(sigmoid).mul_(grad)


class _RotateHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        return (x * cos).addcmul_(_exchange(x, heads), sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        # The transposed rotation: by the opposite angle.
        turned = (grad * cos).addcmul_(_exchange(grad, ctx.heads), sin, value=-1)
        return turned, None, None, None


def _exchange(x: Tensor, heads: int) -> Tensor:
    """Exchange the halves of each head's channels."""
    return x.unflatten(-1, (heads, 2, -1)).roll(1, -2).flatten(-3)
