"""Names and config of the text connectors: Lightricks' to diffusers' and back.

Lightricks keeps the two connectors under the transformer's prefix and in its config, and the
projections of Gemma's states beside them (LTX-2.5: in the text encoder's file).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniforcing.model.weights.tensor_file import WeightsError

SECTION = "transformer"
PREFIXES = (
    "model.diffusion_model.video_embeddings_connector.",
    "model.diffusion_model.audio_embeddings_connector.",
    "text_embedding_projection.",
)
_PARTS = {
    "transformer_1d_blocks": "transformer_blocks",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_PARTS_BACK = {ours: theirs for theirs, ours in _PARTS.items()}
_ROOTS = {
    "model.diffusion_model.video_embeddings_connector": "video_connector",
    "model.diffusion_model.audio_embeddings_connector": "audio_connector",
    "text_embedding_projection.aggregate_embed": "text_proj_in",
    "text_embedding_projection.video_aggregate_embed": "video_text_proj_in",
    "text_embedding_projection.audio_aggregate_embed": "audio_text_proj_in",
}
# Lightricks' flags of the projections that LTX-2.3 and 2.5 have.
_AFTER_2_0 = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
    "text_encoder_norm_type": "per_token_rms",
}


def to_diffusers(name: str, config: Mapping[str, Any]) -> str:  # noqa: ARG001
    """Convert Lightricks' name of a tensor to diffusers' name."""
    for theirs, ours in _ROOTS.items():
        if name.startswith(f"{theirs}."):
            rest = name.removeprefix(f"{theirs}.").split(".")
            return ".".join([ours, *(_PARTS.get(part, part) for part in rest)])
    return name


def to_original(name: str, config: Mapping[str, Any]) -> str:  # noqa: ARG001
    """Convert diffusers' name of a tensor to Lightricks' name."""
    root, *rest = name.split(".")
    theirs = next(theirs for theirs, ours in _ROOTS.items() if ours == root)
    return ".".join([theirs, *(_PARTS_BACK.get(part, part) for part in rest)])


def from_metadata(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, Any]:
    """Convert the connectors' keys in ``config.transformer`` to diffusers' config.

    Args:
        values: ``config.transformer`` of the file's metadata.
        shapes: shapes of the connectors' tensors by Lightricks' name, for the width of Gemma's
            states, which the metadata leaves out.
        where: the file, for errors.

    Raises:
        WeightsError: if the projections are missing or do not fit Gemma's states.
    """
    per_modality = bool(values.get("caption_proj_before_connector", False))
    name = "video_aggregate_embed" if per_modality else "aggregate_embed"
    weight = f"text_embedding_projection.{name}.weight"
    if weight not in shapes or shapes[weight][1] % int(values["caption_channels"]):
        found = list(shapes[weight]) if weight in shapes else "missing"
        raise WeightsError(
            "weights.missing-part",
            f"{where}: the projection of the text encoder's states, {weight}, is {found}; add the "
            "file that holds it with --with (LTX-2.5: the text encoder's)",
        )
    heads, width = values["connector_num_attention_heads"], values["connector_attention_head_dim"]
    layers, registers = values["connector_num_layers"], values["connector_num_learnable_registers"]
    gated = bool(values.get("connector_apply_gated_attention", False))
    video = {
        "num_attention_heads": heads,
        "attention_head_dim": width,
        "num_layers": layers,
        "num_learnable_registers": registers,
    }
    audio = {
        **video,
        "num_attention_heads": values.get("audio_connector_num_attention_heads", heads),
        "attention_head_dim": values.get("audio_connector_attention_head_dim", width),
        "num_layers": values.get("audio_connector_num_layers", layers),
    }
    config: dict[str, Any] = {
        "caption_channels": values["caption_channels"],
        "text_proj_in_factor": shapes[weight][1] // values["caption_channels"],
        **{f"video_connector_{key}": value for key, value in video.items()},
        **{f"audio_connector_{key}": value for key, value in audio.items()},
        "video_gated_attn": gated,
        "audio_gated_attn": gated,
        "connector_rope_base_seq_len": values["connector_positional_embedding_max_pos"][0],
        "rope_theta": 10000.0,  # fixed in Lightricks' code, whatever the transformer's is
        "rope_double_precision": values["frequencies_precision"] == "float64",
        "causal_temporal_positioning": False,
        "rope_type": values["rope_type"],
        "per_modality_projections": per_modality,
        "proj_bias": weight.removesuffix("weight") + "bias" in shapes,
    }
    if per_modality:
        config["video_hidden_dim"] = shapes[weight][0]
        config["audio_hidden_dim"] = shapes[weight.replace("video_", "audio_")][0]
    return config


def to_metadata(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert diffusers' config to the connectors' keys in ``config.transformer``.

    Raises:
        WeightsError: if Lightricks' format cannot express a value.
    """
    if config["video_gated_attn"] != config["audio_gated_attn"] or config["rope_theta"] != 10000.0:
        raise WeightsError(
            "weights.cannot-convert",
            f"{where}: Lightricks' format has one kind of attention and one RoPE for both "
            "connectors; keep to diffusers format",
        )
    keys = ("num_attention_heads", "attention_head_dim", "num_layers")
    return {
        "caption_channels": config["caption_channels"],
        "use_embeddings_connector": True,
        **{f"connector_{key}": config[f"video_connector_{key}"] for key in keys},
        **{f"audio_connector_{key}": config[f"audio_connector_{key}"] for key in keys},
        "connector_num_learnable_registers": config["video_connector_num_learnable_registers"],
        "connector_positional_embedding_max_pos": [config["connector_rope_base_seq_len"]],
        "connector_norm_output": True,
        "connector_apply_gated_attention": config["video_gated_attn"],
        **(_AFTER_2_0 if config["per_modality_projections"] else {}),
    }
