"""Names of LTX-2's tensors: Lightricks' to diffusers' and back, one to one.

A name also tells the release and the stream that a tensor belongs to.
"""

from __future__ import annotations

from collections.abc import Collection

# A Lightricks file holds the whole model: the transformer under the first prefix, codecs, text
# connectors and the duration head under the others. The connectors' prefixes begin with the
# transformer's, so keys are tested against OTHER_PARTS first.
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

# Applied to whole parts between dots, not to substrings: eight other modules' names contain
# ``adaln_single``.
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
    """Convert Lightricks' name of a transformer tensor, without prefix, to diffusers' name."""
    return ".".join(_TO_DIFFUSERS.get(part, part) for part in name.split("."))


def to_original(name: str) -> str:
    """Convert diffusers' name of a transformer tensor to Lightricks' name, without prefix."""
    return ".".join(_TO_ORIGINAL.get(part, part) for part in name.split("."))


def generation(names: Collection[str]) -> str:
    """Tell the release of LTX-2 by its tensors.

    Args:
        names: diffusers names of all tensors.

    Returns:
        ``2.0``, ``2.3`` (adds gated attention) or ``2.5`` (has no bias in the video ``ff``).
    """
    if not any(name.endswith(".to_gate_logits.weight") for name in names):
        return "2.0"
    return "2.3" if any(name.endswith(".ff.net.2.bias") for name in names) else "2.5"


def stream(name: str) -> str:
    """Tell the part of the model by a diffusers name: ``video``, ``audio`` or ``cross-modal``."""
    if any(mark in name for mark in _CROSS_MODAL):
        return "cross-modal"
    return "audio" if any(part.startswith("audio_") for part in name.split(".")) else "video"
