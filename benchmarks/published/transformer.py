"""Tiny random transformers of every release of LTX-2, and what its published files say of them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from omniforcing.model.weights.names import TRANSFORMER, to_original

FACTS = json.loads((Path(__file__).parent / "ltx2.json").read_text())

_GATED = {
    name: True
    for name in ("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod")
}
_AFTER_2_0 = {**_GATED, "use_prompt_embeddings": False, "caption_channels": 48}
RELEASES: dict[str, dict[str, Any]] = {
    "2.0": {},
    "2.3": _AFTER_2_0,
    "2.5": {**_AFTER_2_0, "ff_bias": False, "use_keyframes_abs_pos_embedding": True},
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Two layers, two heads; different widths everywhere, so that mixed-up dimensions show."""
    return {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "cross_attention_dim": 48,
        "vae_scale_factors": (8, 16, 16),
        "audio_in_channels": 12,
        "audio_out_channels": 12,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 16,
        "audio_cross_attention_dim": 32,
        "num_layers": 2,
        "caption_channels": 20,
        "rope_type": "split",
        **changes,
    }


def tiny_core(
    release: str = "2.0", dtype: torch.dtype = torch.float32, **changes: Any
) -> LTX2VideoTransformer3DModel:
    """A tiny transformer of a release, every parameter random: none keeps a value that a mistake
    could restore.
    """
    released = {"vae_scale_factors": (8, 32, 32), **RELEASES[release], **changes}
    core = LTX2VideoTransformer3DModel(**tiny_config(**released)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1])
            )
    return core if dtype is torch.float32 else core.to(dtype)


def original_tensors(
    core: LTX2VideoTransformer3DModel, prefix: str = TRANSFORMER
) -> dict[str, Tensor]:
    """A transformer's weights under Lightricks' names."""
    return {
        prefix + to_original(name): tensor.contiguous()
        for name, tensor in core.state_dict().items()
    }


def released_metadata(release: str) -> dict[str, Any]:
    """The transformer config in the metadata of a released file."""
    return {
        key: value
        for r in ("2.0", "2.3", "2.5")
        if r <= release
        for key, value in FACTS["metadata"][r].items()
    }
