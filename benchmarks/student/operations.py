"""Arithmetic of a block: counted, its calls alone, and the rate of one large product."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.student.bench import CLIP_BLOCKS, StudentBench
from benchmarks.timing import Clock
from omniforcing.core.pair import Pair
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout

# Ends of the names of operations that multiply matrices. In inference mode torch shows a linear
# layer and an attention as one operation each.
PRODUCTS = ("mm", "matmul", "linear", "attention", "attention_for_cpu")
PEAK_SIZE = 4096  # rows and columns on a GPU; a quarter on a CPU


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Time a large matrix product; return operations per second, the best of five.

    A product that takes seconds, as in bf16 on a processor without it, is timed once.
    """
    # A GPU's product is short beside its launch.
    size, products = (PEAK_SIZE, 4) if device.type == "cuda" else (PEAK_SIZE // 4, 1)
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(a, b)
    best, spent = 0.0, 0.0
    for _ in range(5):
        clock = Clock(device)
        for _ in range(products):
            torch.mm(a, b)
        seconds = clock.elapsed()
        best, spent = max(best, products * 2 * size**3 / seconds), spent + seconds
        if spent > 1:
            break
    return best


def block_operations(bench: StudentBench) -> float:
    """Count the operations in the matrix products of one block whose window is full.

    Linear layers are counted by torch over a clip and shared out by latents. Attention grows with
    the history, so its operations follow from its sizes.
    """
    rollout, core = bench.case.rollout, bench.model.core.config
    table, spatial = rollout.table, rollout.grid[0] * rollout.grid[1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bench.clip(InferenceOptions(layers=False), bench.model)
    linear = 0
    for operation, count in counter.get_flop_counts()["Global"].items():
        if "attention" not in str(operation):
            linear += count
    linear_per_latent = linear / table.total(CLIP_BLOCKS).video

    full = rollout.window + 1
    block = table.counts(full)
    visible = [table.counts(index) for index in table.visible(full, rollout.window)]
    queries = Pair(block.video * spatial, block.audio)
    keys = Pair(
        sum(counts.video for counts in visible) * spatial,
        sum(counts.audio for counts in visible),
    )
    widths = Pair(
        core.num_attention_heads * core.attention_head_dim, core.audio_cross_attention_dim
    )
    text = bench.case.text_tokens
    attention = queries.video * (keys.video + text) * widths.video
    attention += queries.audio * (keys.audio + text) * widths.audio
    # Both cross-modal attentions are as wide as the audio stream.
    attention += (queries.video * keys.audio + queries.audio * keys.video) * widths.audio
    forwards = len(rollout.sigmas) + 1  # one more refreshes the cache
    # Two products (scores, mix) of two operations each.
    return linear_per_latent * block.video + 4 * attention * core.num_layers * forwards


class _Calls(TorchDispatchMode):
    """Records calls of matrix products and attentions, to be made again.

    Weights and history are the arguments themselves. Of what a block computes on its way, every
    form is in memory once, with random values: a block's activations would take too much.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[partial[Any]] = []
        self._computed: set[int] = set()
        self._forms: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name.endswith(PRODUCTS) or name.startswith("_scaled_dot_product"):
            self.calls.append(partial(func, *tree_map(self._held, args), **kwargs))
        out = func(*args, **kwargs)
        given = {_address(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and _address(each) not in given:
                self._computed.add(_address(each))
        return out

    def _held(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or _address(value) not in self._computed:
            return value
        form = (tuple(value.shape), value.stride(), value.dtype)
        if form not in self._forms:
            self._forms[form] = torch.empty_like(value).copy_(torch.randn_like(value.float()))
        return self._forms[form]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def bare_calls(bench: StudentBench) -> list[partial[Any]]:
    """Calls of a block's matrix products and attentions, which need no model.

    They are those of a block whose window is full, of all its denoising steps and the refresh.
    """
    options = replace(bench.options, recorded=False, compiled=False)
    fast = accelerate(bench.model, options)
    rollout = Rollout(fast, bench.prompt(), bench.case.rollout, bench.noise(), options)
    for _ in range(bench.first):
        next(rollout)
    with _Calls() as recorded:
        next(rollout)
    return recorded.calls
