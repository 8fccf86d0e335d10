"""Write checkpoints in diffusers' or Lightricks' format, one tensor at a time, equal to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from omniforcing.core.files import write_json
from omniforcing.model.weights.architecture import on_meta, to_metadata
from omniforcing.model.weights.checkpoint import SINKS_FILE, Checkpoint
from omniforcing.model.weights.names import TRANSFORMER, to_original
from omniforcing.model.weights.tensor_file import DTYPES, Watch, ignore, write_safetensors

if TYPE_CHECKING:
    from huggingface_hub.serialization import StateDictSplit

SHARD_SIZE = "5GB"
_PATTERN = "diffusion_pytorch_model{suffix}.safetensors"  # diffusers' name of the weights
ORIGINAL_FILE = "transformer.safetensors"


def write_diffusers(
    checkpoint: Checkpoint, folder: Path, max_shard_size: str = SHARD_SIZE, watch: Watch = ignore
) -> None:
    """Write ``transformer/`` for diffusers' ``from_pretrained``, and ``SINKS_FILE`` for sinks.

    Args:
        checkpoint: the weights, in any format.
        folder: an existing folder.
        max_shard_size: size above which the weights are split into shards with an index.
        watch: called after each tensor with its size in bytes.

    Raises:
        WeightsError: if a tensor holds NaN or infinity.
    """
    target = folder / "transformer"
    on_meta(checkpoint.config).save_config(target)
    shards = planned(checkpoint, max_shard_size)
    for file, names in shards.filename_to_tensors.items():
        layout = {name: checkpoint.entries[name] for name in names}
        write_safetensors(target / file, layout, checkpoint.tensors(names), {"format": "pt"}, watch)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_json(target / f"{_PATTERN.format(suffix='')}.index.json", index)
    _write_sinks(checkpoint, folder)


def planned(checkpoint: Checkpoint, max_shard_size: str = SHARD_SIZE) -> StateDictSplit:
    """Assign tensors to files as diffusers' ``save_pretrained`` does, from shapes and dtypes."""
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = {
        name: torch.empty(
            checkpoint.entries[name].shape,
            dtype=DTYPES[checkpoint.entries[name].dtype],
            device="meta",
        )
        for name in checkpoint.names()
    }
    return split_torch_state_dict_into_shards(
        plan, filename_pattern=_PATTERN, max_shard_size=max_shard_size
    )


def _write_sinks(checkpoint: Checkpoint, folder: Path) -> None:
    sinks = checkpoint.read_sinks()
    if sinks is not None:
        save_file({"sinks": sinks}, folder / SINKS_FILE)


def write_original(checkpoint: Checkpoint, folder: Path, watch: Watch = ignore) -> None:
    """Write ``transformer.safetensors`` with Lightricks' names and its config in the metadata.

    Sinks have no place in that format and go to ``SINKS_FILE`` in the same folder.

    Args:
        checkpoint: the weights, in any format.
        folder: an existing folder.
        watch: called after each tensor with its size in bytes.

    Raises:
        WeightsError: if a tensor holds NaN or infinity, or Lightricks' format cannot express a
            value of the config.
    """
    config = {"transformer": to_metadata(checkpoint.config, str(checkpoint.source))}
    layout = {
        TRANSFORMER + to_original(name): checkpoint.entries[name] for name in checkpoint.names()
    }
    tensors = ((TRANSFORMER + to_original(name), tensor) for name, tensor in checkpoint.tensors())
    write_safetensors(
        folder / ORIGINAL_FILE, layout, tensors, {"config": json.dumps(config)}, watch
    )
    _write_sinks(checkpoint, folder)
