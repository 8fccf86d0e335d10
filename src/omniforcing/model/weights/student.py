"""Save and load ``DualStream`` models: LTX-2's transformer and the student's stabiliser.

The stabiliser's parameters (sink tokens or another kind) are in a file of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from omniforcing.model.config import Stabiliser
from omniforcing.model.stabiliser import Added, adopt, load_added, save_added
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.architecture import on_meta
from omniforcing.model.weights.checkpoint import SINKS_FILE, Checkpoint, open_checkpoint
from omniforcing.model.weights.tensor_file import WeightsError


def save_model(model: DualStream, folder: Path, max_shard_size: str = "5GB") -> None:
    """Write ``transformer/`` in diffusers format and the stabiliser in ``SINKS_FILE``.

    Args:
        model: the model.
        folder: an existing folder.
        max_shard_size: size of a weight file above which diffusers writes shards and an index.
    """
    model.core.save_pretrained(folder / "transformer", max_shard_size=max_shard_size)
    save_added(dict(model.named_parameters(recurse=False)), model.stabiliser, folder / SINKS_FILE)


def load_model(
    source: Path,
    sinks: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    stabiliser: Stabiliser | None = None,
    fresh: bool = False,
    meta: bool = False,
    checkpoint_activations: bool = False,
) -> DualStream:
    """Load a model from any format that ``checkpoint.open_checkpoint`` reads.

    Args:
        source: a folder or file of weights.
        sinks: number of sink tokens that the model must have; None takes the file's.
        device: device of the model.
        dtype: dtype of the weights in memory; None keeps the stored one.
        stabiliser: kind of stabiliser that the model must have; None takes the file's.
        fresh: initialise the stabiliser if the file has none, as a student's first stage does.
        meta: build on the meta device; ``training.sharding`` reads the weights later, when each
            worker knows its shard.
        checkpoint_activations: whether training recomputes activations in the backward pass.

    Returns:
        The model; on the meta device, whatever ``device`` says, if ``meta``.

    Raises:
        OmniForcingError: if the weights cannot be read, do not fit their config, or have another
            stabiliser than asked for.
    """
    checkpoint = open_checkpoint(source)
    added = _added(checkpoint, source, dtype)
    held = len(added.tensors.get("sinks", ()))
    wanted = held if sinks is None else sinks
    begins = fresh and added.stabiliser is None
    if held != wanted and not begins:
        raise WeightsError(
            "weights.other-stabiliser",
            f"{source} holds {held} sinks, expected {wanted}; "
            "set student.sinks to what it was trained with",
        )
    core = (
        on_meta(checkpoint.config).to(dtype or torch.float32).eval()
        if meta
        else checkpoint.core(dtype)
    )
    kind = stabiliser or added.stabiliser or Stabiliser.sinks
    source_of_weights = partial(_named, checkpoint) if meta else None
    model = DualStream(core, wanted, kind, checkpoint_activations, weights=source_of_weights)
    if (
        added.stabiliser is None
        and not begins
        and any(p.numel() for p in model.parameters(recurse=False))
    ):
        name = model.stabiliser.value
        raise WeightsError(
            "weights.other-stabiliser",
            f"{source} holds nothing of {name}; set student.stabiliser to what it was trained with",
        )
    adopt(model, added, source / SINKS_FILE)
    return model if meta else model.to(device)


def _named(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Read a checkpoint's weights one by one, under their names in a ``DualStream``."""
    for name, tensor in checkpoint.tensors():
        yield f"core.{name}", tensor


def _added(checkpoint: Checkpoint, source: Path, dtype: torch.dtype | None) -> Added:
    """Read the stabiliser: from ``SINKS_FILE``, or from the published student's own tensors."""
    beside, sinks = load_added(source / SINKS_FILE), checkpoint.read_sinks()
    tensors = beside.tensors if sinks is None else {**beside.tensors, "sinks": sinks}
    stabiliser = beside.stabiliser if sinks is None else beside.stabiliser or Stabiliser.sinks
    return Added(
        {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}, stabiliser
    )
