"""Private APIs of torch that the model uses, each with its reason.

A test fails when torch's version moves.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The version whose private APIs these functions were written for; tests/test_compat.py
# holds it against the pin in constraints.txt.
REVIEWED = {"torch": "2.13.0"}


def meta_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``[B, heads, N, head_dim]`` tensors on the meta device.

    It saves for the backward what fused kernels save: inputs, output and one number per query.
    torch's public function takes the mathematical path there, which would save the whole matrix
    of scores: a trace of a training step would count memory that no GPU needs.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def scaled_product(
    x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """bf16 product of fp8 matrices ``[N, K]`` and ``[K, M]``, scaled per row and per column.

    torch has no public function for it. On a GPU sums are accumulated fast, in fewer bits, as is
    usual for inference.
    """
    return torch._scaled_mm(
        x,
        weight,
        x_scale,
        weight_scale,
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=x.is_cuda,
    )


def pack_linear(weight: Tensor) -> Tensor:
    """Pack the weight of a linear layer ``[M, K]`` for ``packed_linear_gelu``."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def packed_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """tanh-GELU of a linear layer as one product of oneDNN.

    torch fuses them in compiled code alone; a CPU stream, which is not compiled, gains as much.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")


def allow_compilations(count: int) -> None:
    """Let torch compile one function for ``count`` kinds of inputs; it gives up after 8.

    The limit has no public setter, and is one for the whole process: it is raised, never lowered.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, count)
