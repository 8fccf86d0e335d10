"""Tiny LTX-2 weights of every release, in every format that is read."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.published.transformer import FACTS, original_tensors, tiny_core
from omniforcing.model.weights.architecture import to_metadata

Listing = dict[str, list[int]]


def tiny_authors_core() -> LTX2VideoTransformer3DModel:
    """A tiny transformer with the 32 heads that OmniForcing's authors' code has."""
    return tiny_core(
        num_attention_heads=32,
        audio_num_attention_heads=32,
        attention_head_dim=4,
        cross_attention_dim=128,
        audio_attention_head_dim=2,
        audio_cross_attention_dim=64,
    )


def config_of(core: LTX2VideoTransformer3DModel) -> dict[str, Any]:
    """The constructor's arguments."""
    return {key: value for key, value in core.config.items() if not key.startswith("_")}


def save_original(core: LTX2VideoTransformer3DModel, file: Path, **changes: Any) -> Path:
    """A whole Lightricks file: the transformer, one tensor of each other part, and the config in
    its metadata.
    """
    others = {part["example"]: torch.zeros(2, 3) for part in FACTS["other_parts"].values()}
    config = {**FACTS["metadata"]["2.0"], **to_metadata(core.config, "here"), **changes}
    metadata = {"config": json.dumps({"transformer": config, "vae": {}}), "model_version": "2.0.0"}
    save_file({**original_tensors(core), **others}, file, metadata)
    return file


def save_sharded(tensors: dict[str, Tensor], folder: Path, stem: str, shards: int = 3) -> Path:
    """Shards of neighbouring tensors and their index, as hubs publish them; returns the index."""
    names, places = sorted(tensors), {}
    for part in range(shards):
        file = f"{stem}-{part + 1:05d}-of-{shards:05d}.safetensors"
        own = names[part * len(names) // shards : (part + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in own}, folder / file)
        places.update(dict.fromkeys(own, file))
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def save_authors(core: LTX2VideoTransformer3DModel, folder: Path, sinks: int = 0) -> Path:
    """Weights as OmniForcing's authors publish a student, with the sink tokens of its first version
    if ``sinks``.
    """
    tensors = original_tensors(core, "model.")
    if sinks:
        width = core.audio_proj_in.out_features
        tensors["model.audio_sink_tokens"] = torch.randn(
            1, sinks, width, generator=torch.Generator().manual_seed(3)
        )
    return save_sharded(tensors, folder, "omniforcing_ltx2_5s_causal")


def released_tensors(release: str) -> Listing:
    """Shapes of all tensors of a released transformer, in Lightricks' names without prefix."""
    top, block = (dict(FACTS["original"][part]) for part in ("top", "block"))
    for changed in [r for r in ("2.3", "2.5") if r <= release]:
        top |= FACTS["changes"][changed]["top"]
        block |= FACTS["changes"][changed]["block"]
    return _unfolded(top, block)


def diffusers_tensors() -> Listing:
    """Shapes of all tensors of LTX-2.0's transformer, in diffusers' names."""
    return _unfolded(FACTS["diffusers"]["top"], FACTS["diffusers"]["block"])


def _unfolded(top: dict[str, Any], block: dict[str, Any]) -> Listing:
    blocks = {
        f"transformer_blocks.{i}.{k}": v for i in range(FACTS["layers"]) for k, v in block.items()
    }
    return {name: shape for name, shape in {**top, **blocks}.items() if shape is not None}


def save_hollow(file: Path, shapes: Listing, metadata: dict[str, str]) -> Path:
    """A safetensors file of real size whose data take no room on the disk: a header, and a hole
    (bf16).
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + end)
    return file
