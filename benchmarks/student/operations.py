"""Arithmetic of a block, and the rate that the machine reaches in one large product."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.student.bench import CLIP_BLOCKS, StudentBench
from benchmarks.timing import Clock
from omniforcing.core.pair import Pair
from omniforcing.model.options import InferenceOptions

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
