"""Private APIs of torch that the model uses, each with its reason.

A test fails when torch's version moves.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


class OperationWatch(TorchDispatchMode):
    """Context in which ``ran`` is told of every operation of this thread.

    torch's own counters of operations are made of this mode, which has no public name.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the first operation would import all of torch.compile, seconds for nothing.
        return False

    def ran(
        self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any
    ) -> None:
        """Take note of an operation."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        self.ran(func, args, options, result)
        return result


def set_up_compiler(count: int, told: logging.Filter) -> None:
    """Let torch compile one function for ``count`` kinds of inputs in this thread, and go on.

    It gives up after 8 and raises for what it cannot compile; both settings have no public setter,
    and hold for the thread that sets them (torch 2.13).

    Args:
        count: kinds of inputs, such as the sizes of the history.
        told: sees what torch logs of a function that it could not compile, which then runs as it
            is.
    """
    config = torch._dynamo.config
    # Read first: whatever is set makes torch hash all its settings anew.
    if config.recompile_limit < count:
        config.recompile_limit = count
    if not config.suppress_errors:
        config.suppress_errors = True
    logger = logging.getLogger("torch._dynamo.convert_frame")
    if told not in logger.filters:
        logger.addFilter(told)
