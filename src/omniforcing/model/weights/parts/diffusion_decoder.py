"""Names and config of LTX-2.5's diffusion decoder: Lightricks' to diffusers' and back.

Its file holds a whole video VAE. The encoder in it is the convolutional VAE's, so only the decoder
and its statistics are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from omniforcing.model.weights.parts import video_vae
from omniforcing.model.weights.tensor_file import WeightsError

# Of its tensors here; in the file they have the video VAE's.
PREFIX, SECTION = "diffusion_decoder.", "vae"
CLASS = "CausalDiffusionVAE"
_NETWORK = "NADiffusionDecoder"
# Queries, keys and values are one layer in Lightricks' file.
SPLITS = ((".attn.qkv.", (".attn.to_q.", ".attn.to_k.", ".attn.to_v.")),)
_STATISTICS = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
_LAYERS = {
    ".attn.proj.": ".attn.to_out.0.",
    ".attn.q_norm.": ".attn.norm_q.",
    ".attn.k_norm.": ".attn.norm_k.",
    "t_embedder.mlp.0.": "t_embedder.timestep_embedder.linear_1.",
    "t_embedder.mlp.2.": "t_embedder.timestep_embedder.linear_2.",
}
# Tensors of earlier trainings that Lightricks' own code leaves out, too.
UNREAD = ("decoder.type_emb", "decoder.coarse_head.")
_FIXED = {
    "_class_name": _NETWORK,
    "out_channels": 3,
    "spatial_padding_mode": "zeros",
    "resampler_kind": "linear",
    "rope_dim_split": None,
    "model_output_type": "x0",
    "default_num_inference_steps": 1,
}
_READ = (
    *("in_channels", "patch_size", "head_dim", "stage_channels", "stage_depths", "stage_kernels"),
    *("upsamples", "stage5_kernel", "stage5_channels", "t_emb_dim", "timestep_scale_multiplier"),
)


def to_diffusers(name: str, config: Mapping[str, Any]) -> str:  # noqa: ARG001
    """Convert Lightricks' name of a tensor, without prefix, to diffusers' name."""
    name = _STATISTICS.get(name, name)
    for theirs, ours in _LAYERS.items():
        name = name.replace(theirs, ours)
    return name


def to_original(name: str, config: Mapping[str, Any]) -> str:  # noqa: ARG001
    """Convert diffusers' name of a tensor to Lightricks' name, without prefix."""
    name = {ours: theirs for theirs, ours in _STATISTICS.items()}.get(name, name)
    for theirs, ours in _LAYERS.items():
        name = name.replace(ours, theirs)
    for joined, parts in SPLITS:
        for part in parts:
            name = name.replace(part, joined)
    return name


def from_metadata(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, Any]:
    """Convert ``config.vae.decoder`` of a file's metadata to diffusers' config.

    Args:
        values: ``config.vae``.
        shapes: shapes of the decoder's tensors by name, for the width of its timesteps, which the
            metadata may leave out.
        where: the file, for errors.

    Raises:
        WeightsError: for a key or value that no release has.
    """
    told = {"model_output_type": values.get("model_output_type", "x0"), **values["decoder"]}
    unknown = sorted(set(told) - set(_READ) - set(_FIXED))
    other = [key for key, value in _FIXED.items() if told.get(key, value) != value]
    widths = list(told["stage_channels"])
    if told.get("stage5_channels") not in (None, widths[-1]):
        other.append("stage5_channels")
    if unknown or other:
        key = (unknown + other)[0]
        raise WeightsError(
            "weights.unsupported-config",
            f"{where}: the diffusion decoder's config says {key}={told[key]!r}, which LTX-2.5's "
            "does not; take the file as published, or the convolutional VAE alone",
        )
    strides = [list(stride) for stride, _ in told["upsamples"]]
    patch = int(told["patch_size"])
    timesteps = shapes[f"{PREFIX}decoder.shared_adaln.proj.weight"][1]
    return {
        "out_channels": 3,
        "latent_channels": told["in_channels"],
        "patch_size": patch,
        "scaling_factor": 1.0,
        "decoder_head_dim": told["head_dim"],
        "decoder_stage_channels": widths,
        "decoder_stage_depths": list(told["stage_depths"]),
        "decoder_stage_kernels": [list(k) for k in told["stage_kernels"][: len(strides)]],
        "decoder_upsample_strides": strides,
        "decoder_upsample_channel_reductions": [factor for _, factor in told["upsamples"]],
        "decoder_stage5_kernel": list(told["stage5_kernel"]),
        "decoder_t_emb_dim": timesteps,
        "decoder_timestep_scale_multiplier": told["timestep_scale_multiplier"],
        "decoder_model_output_type": told["model_output_type"],
        "decoder_num_inference_steps": told.get("default_num_inference_steps", 1),
        "spatial_compression_ratio": patch * prod(stride[1] for stride in strides),
        "temporal_compression_ratio": prod(stride[0] for stride in strides),
    }


def to_metadata(config: Mapping[str, Any], where: str) -> dict[str, Any]:  # noqa: ARG001
    """Convert diffusers' config to ``config.vae.decoder`` of Lightricks' metadata."""
    strides = [list(stride) for stride in config["decoder_upsample_strides"]]
    reductions = config["decoder_upsample_channel_reductions"]
    stages = [list(kernel) for kernel in config["decoder_stage_kernels"]]
    return {
        **{key: value for key, value in _FIXED.items() if value is not None},
        "in_channels": config["latent_channels"],
        "patch_size": config["patch_size"],
        "head_dim": config["decoder_head_dim"],
        "stage_channels": list(config["decoder_stage_channels"]),
        "stage_depths": list(config["decoder_stage_depths"]),
        "stage_kernels": [*stages, list(config["decoder_stage5_kernel"])],
        "upsamples": [list(pair) for pair in zip(strides, reductions, strict=True)],
        "stage5_kernel": list(config["decoder_stage5_kernel"]),
        "t_emb_dim": config["decoder_t_emb_dim"],
        "timestep_scale_multiplier": config["decoder_timestep_scale_multiplier"],
    }


def whole_metadata(decoder: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
    """Put the encoder of the convolutional VAE's ``config.vae`` around ``config.vae.decoder``."""
    encoder = {
        "_class_name": "Encoder",
        "dims": vae["dims"],
        "in_channels": vae["in_channels"],
        "out_channels": vae["latent_channels"],
        "blocks": vae["encoder_blocks"],
        "patch_size": vae["patch_size"],
        "latent_log_var": vae["latent_log_var"],
        "norm_layer": vae["norm_layer"],
        "spatial_padding_mode": vae.get("spatial_padding_mode", "zeros"),
    }
    output = decoder["model_output_type"]
    own = {key: value for key, value in decoder.items() if key != "model_output_type"}
    return {
        "_class_name": CLASS,
        "latent_channels": vae["latent_channels"],
        "encoder": encoder,
        "decoder": own,
        "model_output_type": output,
    }


def renamed(key: str) -> str | None:
    """Name a tensor of the diffusion VAE's file as one of the decoder; None for its other ones."""
    name = key.removeprefix(video_vae.PREFIX)
    if not name.startswith(("decoder.", "per_channel_statistics.")) or name.startswith(UNREAD):
        return None
    return PREFIX + name
