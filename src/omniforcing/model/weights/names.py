"""What LTX-2's tensors are called by Lightricks and by diffusers, and what a name says of a tensor.

One to one, both ways.
"""

from __future__ import annotations

from collections.abc import Collection

# A Lightricks file holds the whole model; the transformer stands under this prefix, the parts after
# it are read elsewhere.
TRANSFORMER = "model.diffusion_model."
OTHER_PARTS = (
    "model.diffusion_model.video_embeddings_connector.",
    "model.diffusion_model.audio_embeddings_connector.",
    "text_embedding_projection.",
    "vae.",
    "audio_vae.",
    "vocoder.",
    "duration_head.",
)

# Whole dotted parts of a name, not substrings: ``adaln_single`` is contained in eight other
# modules' names.
_TO_DIFFUSERS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_TO_ORIGINAL = {ours: theirs for theirs, ours in _TO_DIFFUSERS.items()}
_CROSS_MODAL = ("audio_to_video_attn", "video_to_audio_attn", "av_cross_attn_", "_a2v_cross_attn_")


def to_diffusers(name: str) -> str:
    """Lightricks' name of a transformer tensor, its prefix removed, as diffusers calls it."""
    return ".".join(_TO_DIFFUSERS.get(part, part) for part in name.split("."))


def to_original(name: str) -> str:
    """Diffusers' name of a transformer tensor as Lightricks calls it, without prefix."""
    return ".".join(_TO_ORIGINAL.get(part, part) for part in name.split("."))


def generation(names: Collection[str]) -> str:
    """Which release has tensors of these diffusers names: ``2.0``, ``2.3`` (gated attention) or
    ``2.5`` (no bias in ``ff``).
    """
    if not any(name.endswith(".to_gate_logits.weight") for name in names):
        return "2.0"
    return "2.3" if any(name.endswith(".ff.net.2.bias") for name in names) else "2.5"


def stream(name: str) -> str:
    """The part of the model that a diffusers name belongs to: ``video``, ``audio`` or
    ``cross-modal``.
    """
    if any(mark in name for mark in _CROSS_MODAL):
        return "cross-modal"
    return "audio" if any(part.startswith("audio_") for part in name.split(".")) else "video"
