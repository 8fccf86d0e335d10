"""The two RoPE conventions of LTX-2's checkpoints, and the exact permutation of weights between them.

Both turn the same pairs of channels by the same angles: frequency f of an attention's whole width belongs to head
f // (D/2), in ``split`` to that head's channels j and j + D/2, in ``interleaved`` to 2j and 2j + 1 (j = f mod D/2). So the
rows of ``to_q`` and ``to_k`` and the gains of ``norm_q`` and ``norm_k`` change places within each head, and nothing else
changes: attention scores are sums over a head's channels, the norm's mean is one over all of them.
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
# Attention to text has no positions and stays as it is.
_SITES = ("attn1", "audio_attn1", "audio_to_video_attn", "video_to_audio_attn")
_TURNED = ("to_q", "to_k", "norm_q", "norm_k")


def rope_rows(heads: int, head_dim: int, to: str) -> Tensor:
    """Which rows ``[heads * head_dim]`` of the other convention's weights make those of convention ``to``.

    Raises:
        WeightsError: if the width of a head is odd: interleaved pairs would then straddle two heads.
    """
    if head_dim % 2:
        raise WeightsError(
            "weights.cannot-convert",
            f"heads of {head_dim} channels have no exact counterpart in the other RoPE convention; "
            "it must be even",
        )
    split = torch.arange(heads * head_dim).view(heads, 2, head_dim // 2)
    interleaved = split.transpose(1, 2).flatten()
    return interleaved if to == "interleaved" else interleaved.argsort()


def exchange_rope(name: str, tensor: Tensor, config: Mapping[str, Any], to: str) -> Tensor:
    """A weight of a model with the other convention as convention ``to`` needs it; most weights stay what they are.

    Args:
        name: the tensor's diffusers name.
        tensor: ``[C, ...]``.
        config: arguments of diffusers' transformer.
        to: ``split`` or ``interleaved``.
    """
    *_, site, part, _kind = ("", "", *name.split("."))
    if site not in _SITES or part not in _TURNED:
        return tensor
    prefix = "" if site == "attn1" else "audio_"
    rows = rope_rows(
        config[f"{prefix}num_attention_heads"], config[f"{prefix}attention_head_dim"], to
    )
    return tensor[rows]


def with_rope(checkpoint: Checkpoint, to: str) -> Checkpoint:
    """The same model in the convention ``to``, its weights exchanged as they are read.

    Raises:
        WeightsError: if the two conventions are not exactly exchangeable in this architecture.
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
    # The cross-modal tables are built for cross_attention_dim channels, the queries they turn have
    # heads times head_dim.
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
