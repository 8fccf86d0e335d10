"""Private APIs of torch that the model uses, each with its reason. A test fails when torch's version moves."""

from __future__ import annotations

import torch
from torch import Tensor

# The version whose private APIs these functions were written for; tests/model/test_compat.py
# holds it against the pin in constraints.txt.
REVIEWED = {"torch": "2.13.0"}


def meta_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``[B, H, N, D]`` tensors on the meta device, saving for the backward what fused kernels save.

    torch's public function takes the mathematical path there, which would save the whole matrix
    of scores: a trace of a training step would count memory that no GPU needs.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
