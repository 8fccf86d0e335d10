"""Stabilisers of a causal student's first audio tokens: added parameters, and their file.

The paper (table 3) names four and defines the first, the sinks; our reading of the others is
written where they act.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omniforcing.core.errors import OmniForcingError
from omniforcing.model.config import Stabiliser

WITH_SINKS = (Stabiliser.sinks, Stabiliser.sinks_rope_growing)


def added_parameters(
    stabiliser: Stabiliser, sinks: int, width: int, layers: int, heads: int
) -> dict[str, nn.Parameter | None]:
    """Make the parameters of a stabiliser, by name; None for those of the other stabilisers.

    ``qk_gain`` starts at 1, where a head's logits are bounded by the root of its width;
    ``tanh_gate`` at 0, closed, as in Flamingo.

    Args:
        stabiliser: which one.
        sinks: number of sink tokens.
        width: width of the audio's hidden states.
        layers: number of transformer blocks.
        heads: audio heads of a block.
    """
    start = torch.randn(sinks, width, generator=torch.Generator().manual_seed(0)) * 0.02
    gain = nn.Parameter(torch.ones(layers, heads)) if stabiliser is Stabiliser.qk_norm else None
    gate = nn.Parameter(torch.zeros(layers, heads)) if stabiliser is Stabiliser.tanh_gate else None
    return {"sinks": nn.Parameter(start), "qk_gain": gain, "tanh_gate": gate}


def normalise_heads(x: Tensor, heads: int, gain: Tensor | None = None) -> Tensor:
    """Normalise every head to root mean square 1 (stabiliser ``qk_norm``).

    LTX-2 normalises all heads together, so that one of them can still grow without bound.

    Args:
        x: queries or keys ``[B, N, heads * head_dim]``.
        heads: number of heads.
        gain: factor of each head, ``[heads]``.
    """
    normed = F.rms_norm(x.unflatten(-1, (heads, -1)), (x.shape[-1] // heads,))
    return (normed if gain is None else normed * gain.unsqueeze(-1)).flatten(-2)


def gate_heads(mixed: Tensor, gate: Tensor) -> Tensor:
    """Multiply each head's output by the tanh of its gate (stabiliser ``tanh_gate``).

    Args:
        mixed: outputs ``[B, N, heads * head_dim]``.
        gate: learnt gates ``[heads]``.
    """
    return (mixed.unflatten(-1, (len(gate), -1)) * gate.tanh().unsqueeze(-1)).flatten(-2)


@dataclass(frozen=True)
class Added:
    """Parameters that a file holds besides LTX-2's.

    Attributes:
        tensors: by name.
        stabiliser: what they belong to; None if there are none.
    """

    tensors: dict[str, Tensor]
    stabiliser: Stabiliser | None


def save_added(added: Mapping[str, Tensor], stabiliser: Stabiliser, path: Path) -> None:
    """Write the parameters that are not LTX-2's, and the name of their stabiliser."""
    save_file(
        {name: p.detach().contiguous() for name, p in added.items()},
        path,
        {"stabiliser": stabiliser.value},
    )


def load_added(path: Path) -> Added:
    """Read what ``save_added`` wrote; nothing if there is no file.

    Files of older versions hold sinks and no name of a stabiliser.
    """
    if not path.is_file():
        return Added({}, None)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = Stabiliser((file.metadata() or {}).get("stabiliser", Stabiliser.sinks.value))
    return Added(tensors, kept if any(t.numel() for t in tensors.values()) else None)


class Stabilised(Protocol):
    """A model with a stabiliser and its parameters (``transformer.DualStream``)."""

    stabiliser: Stabiliser

    def named_parameters(self, *, recurse: bool) -> Iterable[tuple[str, nn.Parameter]]:
        """Parameters by name."""
        ...


def adopt(model: Stabilised, added: Added, path: Path) -> None:
    """Give a model the parameters of a file; without any, the model's stay at their start.

    Args:
        model: the model.
        added: the file's parameters.
        path: the file, for messages.

    Raises:
        OmniForcingError: if the file is of another stabiliser, or of other sizes.
    """
    if added.stabiliser is None:
        return
    if added.stabiliser is not model.stabiliser:
        raise OmniForcingError(
            "weights.other-stabiliser",
            f"{path} holds the stabiliser {added.stabiliser.value}, expected "
            f"{model.stabiliser.value}; set student.stabiliser to {added.stabiliser.value}",
        )
    own = dict(model.named_parameters(recurse=False))
    for name, kept in added.tensors.items():
        if name not in own or kept.shape != own[name].shape:
            wanted = list(own[name].shape) if name in own else "none"
            raise OmniForcingError(
                "weights.wrong-shape",
                f"{path} holds {name} {list(kept.shape)}, expected {wanted}; "
                "use the config that belongs to these weights",
            )
        setattr(model, name, nn.Parameter(kept))
