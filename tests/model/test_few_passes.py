"""Functions in few passes: values of the formulas they stand for, and derivatives of their own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from omniforcing.model.functions.few_passes import gelu, multiply_add, rms_norm, rotate_halves

HEADS, ANGLES = 2, torch.rand(5, 4, dtype=torch.float64)
# Per head: cosines of both halves, and sines of the first half negative.
COS = torch.cat([ANGLES.cos().unflatten(-1, (HEADS, 2))] * 2, -1).flatten(1)
SIN = torch.cat([sign * ANGLES.sin().unflatten(-1, (HEADS, 2)) for sign in (-1, 1)], -1).flatten(1)


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def rotated(x: Tensor) -> Tensor:
    first, second = x.unflatten(-1, (HEADS, 2, -1)).unbind(-2)
    angles = ANGLES.unflatten(-1, (HEADS, 2))
    turned = [
        first * angles.cos() - second * angles.sin(),
        second * angles.cos() + first * angles.sin(),
    ]
    return torch.stack(turned, -2).flatten(-3)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "rms_norm": (
        lambda x, w: rms_norm(x, w, 1e-6),
        lambda x, w: F.rms_norm(x, (8,), w, 1e-6),
        (normal(2, 5, 8), normal(8)),
    ),
    "rms_norm without a weight": (
        lambda x: rms_norm(x, None, 1e-6),
        lambda x: F.rms_norm(x, (8,), None, 1e-6),
        (normal(2, 5, 8),),
    ),
    "gelu": (gelu, lambda x: F.gelu(x, approximate="tanh"), (normal(3, 7),)),
    "rotate_halves": (lambda x: rotate_halves(x, COS, SIN, HEADS), rotated, (normal(2, 5, 8),)),
    "multiply_add": (
        multiply_add,
        lambda x, scale, shift: x * scale + shift,
        (normal(2, 5, 8), normal(2, 1, 8), normal(1, 5, 8)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_formula(name: str) -> None:
    ours, formula, inputs = CASES[name]
    torch.testing.assert_close(ours(*inputs), formula(*inputs), rtol=1e-12, atol=1e-12)
    gradcheck(ours, inputs)


@pytest.mark.parametrize("name", ["gelu", "rms_norm"])
def test_large_and_tiny_numbers_stay_finite(name: str) -> None:
    ours, formula, inputs = CASES[name]
    for scale in (1e-12, 1e4):
        scaled = [(x.detach() * scale).float().requires_grad_() for x in inputs]
        result, expected = ours(*scaled), formula(*scaled)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
        result.sum().backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in scaled)


def test_half_precision_is_computed_as_torch_does() -> None:
    x = torch.randn(4, 8).bfloat16()
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))
    assert torch.equal(multiply_add(x, x, x), x * x + x)
