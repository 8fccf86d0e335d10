"""Names and config of the video VAE: Lightricks' to diffusers' and back.

Lightricks counts all blocks of a side in one list, in which residual blocks and resamplers take
turns; diffusers puts each resampler into the level before (encoder) or after it (decoder).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omniforcing.model.weights.tensor_file import WeightsError

PREFIX, SECTION = "vae.", "vae"
_STATISTICS = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
_STATISTICS_BACK = {ours: theirs for theirs, ours in _STATISTICS.items()}
# What a resampler does: Lightricks' name of its kind, without the encoder's ``_res``.
_KINDS = {
    "compress_space": "spatial",
    "compress_time": "temporal",
    "compress_all": "spatiotemporal",
}
_KINDS_BACK = {ours: theirs for theirs, ours in _KINDS.items()}
# Values that every release has and that diffusers assumes.
_FIXED = {
    "dims": 3,
    "norm_layer": "pixel_norm",
    "use_quant_conv": False,
    "scaling_factor": 1.0,
    "normalize_latent_channels": False,
}
_BLOCK = re.compile(r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.?(\d*)\.(.*)")


def to_diffusers(name: str, config: Mapping[str, Any]) -> str:
    """Convert Lightricks' name of a tensor, without prefix, to diffusers' name."""
    name = _STATISTICS.get(name, name).replace("res_blocks", "resnets")
    found = _BLOCK.fullmatch(name)
    if found is None or not found[3]:
        return name
    side, _, number, rest = found[1], found[2], int(found[3]), found[4]
    if side == "encoder":
        last = 2 * len(config["block_out_channels"])
        level, odd = divmod(number, 2)
        place = "mid_block" if number == last else f"down_blocks.{level}"
        return f"{side}.{place}{'.downsamplers.0' if odd else ''}.{rest}"
    if number == 0:
        return f"{side}.mid_block.{rest}"
    level, even = divmod(number - 1, 2)
    return f"{side}.up_blocks.{level}{'' if even else '.upsamplers.0'}.{rest}"


def to_original(name: str, config: Mapping[str, Any]) -> str:
    """Convert diffusers' name of a tensor to Lightricks' name, without prefix."""
    name = _STATISTICS_BACK.get(name, name)
    found = _BLOCK.fullmatch(name)
    if found is None:
        return name
    side, kind, level, rest = found[1], found[2], int(found[3] or 0), found[4]
    resampler = re.match(r"(down|up)samplers\.0\.", rest)
    rest = rest[resampler.end() :] if resampler else rest.replace("resnets", "res_blocks")
    if side == "encoder":
        levels = len(config["block_out_channels"])
        number = 2 * levels if kind == "mid_block" else 2 * level + bool(resampler)
        return f"{side}.down_blocks.{number}.{rest}"
    number = 0 if kind == "mid_block" else 2 * level + (1 if resampler else 2)
    return f"{side}.up_blocks.{number}.{rest}"


def from_metadata(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert ``config.vae`` of a file's metadata to diffusers' config.

    Raises:
        WeightsError: if it is the diffusion decoder's, or holds a block or value of no release.
    """
    kind = values.get("_class_name", "CausalVideoAutoencoder")
    if kind != "CausalVideoAutoencoder":
        raise WeightsError(
            "weights.unsupported-part",
            f"{where} holds the video VAE {kind}, whose decoder is a diffusion model that is not "
            "read; take the file of the convolutional one (LTX-2.5: video-vae-conv)",
        )
    for key, value in _FIXED.items():
        if values.get(key, value) != value:
            raise WeightsError(
                "weights.unsupported-config",
                f"{where}: the video VAE's config says {key}={values[key]!r}; LTX-2 has {value!r}",
            )
    if values.get("timestep_conditioning", False):
        raise WeightsError(
            "weights.unsupported-config",
            f"{where}: the video VAE's config says timestep_conditioning=True; no LTX-2 release "
            "has that",
        )
    channels, patch = int(values["latent_channels"]), int(values["patch_size"])
    encoder = _Side(values["encoder_blocks"], "_res", where)
    decoder = _Side(values["decoder_blocks"][::-1], "", where)
    widths = [channels]
    for factor in encoder.factors:
        widths.append(widths[-1] * factor)
    # The decoder begins at eight times its base width, whatever its stages multiply to.
    entering, width = [], 8 * int(values["decoder_base_channels"])
    for factor in decoder.factors:
        entering.append(width)
        width //= factor
    levels = len(decoder.kinds)
    padding = values.get("spatial_padding_mode")
    halved = {
        "spatial_compression_ratio": patch * 2 ** sum("spati" in k for k in encoder.kinds),
        "temporal_compression_ratio": 2 ** sum("temporal" in k for k in encoder.kinds),
    }
    return {
        "in_channels": values.get("in_channels", 3),
        "out_channels": values.get("out_channels", 3),
        "latent_channels": channels,
        "block_out_channels": widths[1:],
        "down_block_types": ["LTX2VideoDownBlock3D"] * len(encoder.kinds),
        "decoder_block_out_channels": entering[::-1],
        "layers_per_block": encoder.layers,
        "decoder_layers_per_block": decoder.layers[::-1],
        "spatio_temporal_scaling": [True] * len(encoder.kinds),
        "decoder_spatio_temporal_scaling": [True] * levels,
        "decoder_inject_noise": decoder.noise[::-1],
        "downsample_type": encoder.kinds,
        # diffusers reverses every list of the decoder but this one.
        "upsample_type": decoder.kinds,
        "upsample_residual": decoder.residual[::-1],
        "upsample_factor": decoder.factors[::-1],
        "timestep_conditioning": False,
        "patch_size": patch,
        "patch_size_t": 1,
        "encoder_causal": True,
        "decoder_causal": bool(values.get("causal_decoder", False)),
        # LTX-2.0 says nothing, and Lightricks' code then pads its two sides differently.
        "encoder_spatial_padding_mode": padding or "zeros",
        "decoder_spatial_padding_mode": padding or "reflect",
        **halved,
    }


class _Side:
    """One side's list of blocks, from the picture (encoder) or the latents (decoder) on."""

    def __init__(self, blocks: list[Any], suffix: str, where: str) -> None:
        self.layers: list[int] = []
        self.noise: list[bool] = []
        self.kinds: list[str] = []
        self.factors: list[int] = []
        self.residual: list[bool] = []
        for index, (name, told) in enumerate(blocks):
            given = told if isinstance(told, dict) else {"num_layers": told}
            kind = _KINDS.get(name.removesuffix(suffix) if suffix else name)
            fits = kind is not None and name.endswith(suffix) if index % 2 else name == "res_x"
            if not fits:
                raise WeightsError(
                    "weights.unsupported-config",
                    f"{where}: the video VAE's config has the block {name!r} at place {index}; "
                    "LTX-2's VAEs alternate res_x and a resampler",
                )
            if kind is None:
                self.layers.append(int(given["num_layers"]))
                self.noise.append(bool(given.get("inject_noise", False)))
            else:
                self.kinds.append(kind)
                self.factors.append(int(given.get("multiplier", 2 if suffix else 1)))
                self.residual.append(bool(given.get("residual", False)))


def to_metadata(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert diffusers' config to ``config.vae`` of Lightricks' metadata.

    Raises:
        WeightsError: if Lightricks' format cannot express a value.
    """
    if config.get("timestep_conditioning") or config.get("patch_size_t", 1) != 1:
        raise WeightsError(
            "weights.cannot-convert",
            f"{where}: Lightricks' format cannot say what this video VAE's config says; "
            "keep to diffusers format",
        )
    widths = [config["latent_channels"], *config["block_out_channels"]]
    encoder = [["res_x", {"num_layers": config["layers_per_block"][0]}]]
    for index, kind in enumerate(config["downsample_type"]):
        factor = widths[index + 1] // widths[index]
        encoder.append([f"{_KINDS_BACK[kind]}_res", {"multiplier": factor}])
        encoder.append(["res_x", {"num_layers": config["layers_per_block"][index + 1]}])
    factors, residual = config["upsample_factor"][::-1], config["upsample_residual"][::-1]
    layers = config["decoder_layers_per_block"][::-1]
    noise = config["decoder_inject_noise"][::-1]
    decoder: list[list[Any]] = [["res_x", _residual_blocks(layers[0], noise[0])]]
    for index, kind in enumerate(config["upsample_type"]):
        told = {"multiplier": factors[index]}
        # In Lightricks' code only this kind has a residual branch.
        if residual[index]:
            told = {"residual": True, **told}
        decoder.append([_KINDS_BACK[kind], told])
        decoder.append(["res_x", _residual_blocks(layers[index + 1], noise[index + 1])])
    padding = config["encoder_spatial_padding_mode"], config["decoder_spatial_padding_mode"]
    same = {} if padding == ("zeros", "reflect") else {"spatial_padding_mode": padding[1]}
    return {
        "_class_name": "CausalVideoAutoencoder",
        **_FIXED,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "latent_channels": config["latent_channels"],
        "encoder_blocks": encoder,
        "decoder_blocks": decoder[::-1],
        "patch_size": config["patch_size"],
        "latent_log_var": "uniform",
        "causal_decoder": config["decoder_causal"],
        "timestep_conditioning": False,
        "encoder_base_channels": config["latent_channels"],
        "decoder_base_channels": config["decoder_block_out_channels"][-1] // 8,
        **same,
    }


def _residual_blocks(layers: int, noise: bool) -> dict[str, Any]:
    return {"num_layers": layers, "inject_noise": noise}
