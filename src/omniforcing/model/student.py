"""Build a transformer for a codec, and the RoPE tables of a model."""

from __future__ import annotations

from typing import Any

import torch

from omniforcing.core.layout import Counts
from omniforcing.model.attention import Positions
from omniforcing.model.config import Stabiliser, TransformerConfig
from omniforcing.model.transformer import DualStream
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

# What the config of a release says that LTX-2.0's does not.
_GATED = {
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}
RELEASE_CONFIGS: dict[str, dict[str, Any]] = {
    "2.0": {},
    "2.3": _GATED,
    "2.5": {**_GATED, "ff_bias": False, "use_keyframes_abs_pos_embedding": True},
}


def core_config(
    model: TransformerConfig, codec: dict[str, Any], caption_channels: int, release: str = "2.0"
) -> dict[str, Any]:
    """Arguments of diffusers' transformer for a codec, as LTX-2's released configs have them.

    Args:
        model: layers, heads and widths.
        codec: contents of ``codec.json``.
        caption_channels: width of the text features; unused from release 2.3 on.
        release: release of LTX-2, one of ``model.config.RELEASES``.
    """
    pixels = codec["height"] // codec["grid"][0]
    return {
        "in_channels": codec["video_channels"],
        "out_channels": codec["video_channels"],
        "num_attention_heads": model.heads,
        "attention_head_dim": model.video_head_dim,
        "cross_attention_dim": model.heads * model.video_head_dim,
        "vae_scale_factors": (8, pixels, pixels),
        "base_height": model.base_size,
        "base_width": model.base_size,
        "audio_in_channels": codec["audio_channels"],
        "audio_out_channels": codec["audio_channels"],
        "audio_num_attention_heads": model.heads,
        "audio_attention_head_dim": model.audio_head_dim,
        "audio_cross_attention_dim": model.heads * model.audio_head_dim,
        "num_layers": model.layers,
        "caption_channels": caption_channels,
        "rope_type": "split",
        **RELEASE_CONFIGS[release],
    }


def build_core(config: dict[str, Any], seed: int) -> LTX2VideoTransformer3DModel:
    """Build a transformer with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LTX2VideoTransformer3DModel(**config)


def positions_for(
    model: DualStream, counts: Counts, grid: tuple[int, int], sinks: bool
) -> Positions:
    """RoPE tables of a model over the first ``counts`` latents.

    Args:
        model: the model.
        counts: latents of each stream.
        grid: spatial tokens of a video latent, (H, W).
        sinks: whether its sink tokens stand in front of the audio.
    """
    growing = model.stabiliser is Stabiliser.sinks_rope_growing
    return model.positions(counts, grid, len(model.sinks) if sinks else 0, growing)
