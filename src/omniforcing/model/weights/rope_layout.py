"""Convert weights between LTX-2's two RoPE conventions by an exact permutation of rows.

Both conventions rotate pairs of channels by the same angles and differ in which channels form a
pair. With heads of D channels, frequency f of an attention belongs to head ``f // (D/2)``; with
``j = f % (D/2)`` it rotates

- ``split``: channels ``j`` and ``j + D/2`` of that head;
- ``interleaved``: channels ``2j`` and ``2j + 1`` of that head.

So the rows of ``to_q`` and ``to_k``, and the gains of ``norm_q`` and ``norm_k``, are permuted
within each head. Nothing else changes: attention scores sum over a head's channels, and the RMS
norm averages over all channels; neither depends on their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omniforcing.model.weights.checkpoint import Checkpoint
from omniforcing.model.weights.tensor_file import WeightsError

CONVENTIONS = ("split", "interleaved")
# Attentions with RoPE; attention to text (``attn2``) has no positions.
_SITES = ("attn1", "audio_attn1", "audio_to_video_attn", "video_to_audio_attn")
_TURNED = ("to_q", "to_k", "norm_q", "norm_k")


def rope_rows(heads: int, head_dim: int, to: str) -> Tensor:
    """Compute the permutation of rows from the other convention to ``to``.

    Args:
        heads: number of heads.
        head_dim: channels per head, even.
        to: ``split`` or ``interleaved``.

    Returns:
        Indices ``[heads * head_dim]``: new row ``i`` is old row ``rows[i]``.

    Raises:
        WeightsError: if ``head_dim`` is odd, because interleaved pairs would then span two heads.
    """
    if head_dim % 2:
        raise WeightsError(
            "weights.cannot-convert",
            f"heads of {head_dim} channels have no exact counterpart in the other RoPE convention; "
            "it must be even",
        )
    # Split order within a head is (half, pair); interleaved order is (pair, half), its transpose.
    split = torch.arange(heads * head_dim).view(heads, 2, head_dim // 2)
    interleaved = split.transpose(1, 2).flatten()
    return interleaved if to == "interleaved" else interleaved.argsort()


def exchange_rope(name: str, tensor: Tensor, config: Mapping[str, Any], to: str) -> Tensor:
    """Permute a weight of a model with the other convention for convention ``to``.

    Args:
        name: the tensor's diffusers name.
        tensor: weight, bias or norm gain, ``[heads * head_dim, ...]``.
        config: arguments of diffusers' transformer.
        to: ``split`` or ``interleaved``.

    Returns:
        The permuted tensor, or ``tensor`` itself if it is no query or key weight under RoPE.
    """
    *_, site, part, _kind = ("", "", *name.split("."))
    if site not in _SITES or part not in _TURNED:
        return tensor
    # Cross-modal attentions have the audio stream's heads and widths in both directions.
    prefix = "" if site == "attn1" else "audio_"
    rows = rope_rows(
        config[f"{prefix}num_attention_heads"], config[f"{prefix}attention_head_dim"], to
    )
    return tensor[rows]


def with_rope(checkpoint: Checkpoint, to: str) -> Checkpoint:
    """Change a checkpoint's RoPE convention; its weights are permuted as they are read.

    Args:
        checkpoint: the weights, of either convention.
        to: ``split`` or ``interleaved``.

    Returns:
        ``checkpoint`` itself if it has that convention, else one that computes the same model.

    Raises:
        WeightsError: if the conversion would not be exact for this architecture.
    """
    config = checkpoint.config
    if config["rope_type"] == to:
        return checkpoint
    _refuse_inexact(config, str(checkpoint.source))
    return replace(
        checkpoint,
        config={**config, "rope_type": to},
        turn=lambda name, tensor: exchange_rope(name, tensor, config, to),
    )


def _refuse_inexact(config: Mapping[str, Any], where: str) -> None:
    # Diffusers spreads the cross-modal frequencies over audio_cross_attention_dim channels but
    # rotates heads * head_dim. If these differ, the two conventions' pairs do not correspond.
    width = config["audio_num_attention_heads"] * config["audio_attention_head_dim"]
    if config["audio_cross_attention_dim"] != width:
        raise WeightsError(
            "weights.cannot-convert",
            f"{where}: audio_cross_attention_dim is {config['audio_cross_attention_dim']} but the "
            f"cross-modal attentions are {width} wide; their RoPE cannot be exchanged exactly, "
            f"keep {config['rope_type']!r}",
        )
    for prefix in ("", "audio_"):
        rope_rows(1, config[f"{prefix}attention_head_dim"], config["rope_type"])
