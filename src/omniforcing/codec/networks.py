"""Build and load the codec's networks: video VAE, audio VAE and vocoder of LTX-2."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from omniforcing.codec.config import (
    DIFFUSION_DECODER,
    AudioCodecConfig,
    VideoCodecConfig,
    VocoderConfig,
)
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json
from omniforcing.core.layout import MEL_RATE, SAMPLE_RATE
from omniforcing.media.mel import MEL_BINS
from omniforcing.networks.audio_vae import AutoencoderKLLTX2Audio
from omniforcing.networks.choose import network_class
from omniforcing.networks.network import Loaded, Network
from omniforcing.networks.video_vae import AutoencoderKLLTX2Video
from omniforcing.networks.vocoder import LTX2Vocoder

# Tokens of the pocket codec: patches of 8 pixels, halved in space once and in time three times, so
# 16x16 pixels and 8 frames, as many frames as LTX-2's latents have.
PATCH_SIZE = 8
LEVELS = ("temporal", "temporal", "spatiotemporal")
AUDIO_LATENT_CHANNELS = 1


class CodecError(OmniForcingError):
    """Error of a codec folder, a picture size or latents that do not fit."""


def build_video_vae(config: VideoCodecConfig) -> Any:
    """Build a causal ``AutoencoderKLLTX2Video`` from its config."""
    levels = len(LEVELS)
    return AutoencoderKLLTX2Video(
        latent_channels=config.latent_channels,
        block_out_channels=tuple(config.encoder_channels),
        down_block_types=("LTX2VideoDownBlock3D",) * levels,
        decoder_block_out_channels=tuple(config.decoder_channels),
        layers_per_block=tuple(config.encoder_layers),
        decoder_layers_per_block=tuple(config.decoder_layers),
        spatio_temporal_scaling=(True,) * levels,
        decoder_spatio_temporal_scaling=(True,) * levels,
        decoder_inject_noise=(False,) * (levels + 1),
        downsample_type=LEVELS,
        upsample_type=LEVELS,
        upsample_residual=(True,) * levels,
        upsample_factor=(2,) * levels,
        patch_size=PATCH_SIZE,
        encoder_causal=True,
        decoder_causal=True,
        decoder_spatial_padding_mode="zeros",
        spatial_compression_ratio=PATCH_SIZE * 2 ** sum("spati" in kind for kind in LEVELS),
        temporal_compression_ratio=2 ** sum("temporal" in kind for kind in LEVELS),
    )


def build_audio_vae(config: AudioCodecConfig) -> Any:
    """Build a causal ``AutoencoderKLLTX2Audio`` from its config."""
    return AutoencoderKLLTX2Audio(
        # diffusers sizes the statistics of the latents by the base channels: as many as an audio
        # latent has.
        base_channels=AUDIO_LATENT_CHANNELS * MEL_BINS // 4,
        ch_mult=tuple(config.channel_multipliers),
        num_res_blocks=1,
        latent_channels=AUDIO_LATENT_CHANNELS,
        mel_bins=MEL_BINS,
        norm_type="pixel",
        causality_axis="height",
    )


def build_vocoder(config: VocoderConfig) -> Any:
    """Build an ``LTX2Vocoder`` from its config; it turns stereo log-mel into stereo at 16 kHz."""
    return LTX2Vocoder(
        in_channels=2 * MEL_BINS,
        hidden_channels=config.hidden,
        upsample_kernel_sizes=[8, 3, 3, 320],
        # Their product, 160, is the samples per mel frame; the last makes the waveform at once.
        upsample_factors=[2, 1, 1, 80],
        resnet_kernel_sizes=[5],
        resnet_dilations=[[1, 3]],
        output_sampling_rate=SAMPLE_RATE,
    )


def refuse_other_rates(config: Mapping[str, Any], title: str = "the vocoder") -> None:
    """Refuse a vocoder whose networks do not make its sample rates of 100 mel frames a second.

    Args:
        config: config of an ``LTX2Vocoder`` or ``LTX2VocoderWithBWE``.
        title: what the error calls it.

    Raises:
        CodecError: with the rate that is made and the rate that is stated.
    """
    rates = [(MEL_RATE, "upsample_factors", "output_sampling_rate")]
    if "bwe_upsample_factors" in config:
        frames = config["input_sampling_rate"] / config["hop_length"]
        rates = [
            (MEL_RATE, "upsample_factors", "input_sampling_rate"),
            (frames, "bwe_upsample_factors", "output_sampling_rate"),
        ]
    for frames, factors, rate in rates:
        if (made := frames * prod(config[factors])) != config[rate]:
            raise CodecError(
                "codec.wrong-sample-rate",
                f"{title}'s {factors} make {made:g} samples a second of {frames:g} frames, but "
                f"its {rate} is {config[rate]}; take a vocoder for {MEL_RATE} mel frames a second",
            )


def load_parts(folder: Path) -> tuple[Any, Any, Any]:
    """Load video VAE, audio VAE and vocoder of a codec folder or of LTX-2's own, in float32.

    Raises:
        CodecError: if a part is missing, incomplete, unreadable or of another class.
    """
    return (
        _load_part(folder / video_folder(folder), "AutoencoderKLLTX2Video"),
        _load_part(folder / "audio_vae", "AutoencoderKLLTX2Audio"),
        _load_part(folder / "vocoder", "LTX2Vocoder", "LTX2VocoderWithBWE"),
    )


def load_diffusion_decoder(folder: Path) -> Any:
    """Load the diffusion decoder of a codec folder or of LTX-2.5's own, in float32.

    Raises:
        CodecError: if it is missing, incomplete, unreadable or of another class.
    """
    place = folder / DIFFUSION_DECODER
    if not place.is_dir():
        raise CodecError(
            "codec.no-diffusion-decoder",
            f"{place} is missing: only LTX-2.5 has a diffusion decoder; import its file "
            "video-vae (not video-vae-conv) too, or set codec.video_decoder=convolutional",
        )
    return _load_part(place, "LTX2VideoDiffusionDecoderModel")


def video_folder(folder: Path) -> str:
    """Return the name of the video VAE's folder: ours, or ``vae`` as LTX-2 has it."""
    return "video_vae" if (folder / "video_vae").is_dir() else "vae"


def _load_part(folder: Path, *names: str) -> Any:
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name not in names:
        raise CodecError(
            "codec.wrong-class", f"{folder} holds a {name}; a {' or '.join(names)} is needed there"
        )
    kind = network_class(name, config)
    try:
        read = kind.load(folder) if issubclass(kind, Network) else _of_diffusers(kind, folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CodecError(
            "file.unreadable",
            f"{folder} is not a readable {name}: {str(error).splitlines()[0]}",
        ) from error
    if read.missing or read.unexpected:
        raise CodecError(
            "codec.wrong-weights",
            f"{folder} holds the weights of another {name} than its config.json describes "
            f"({len(read.missing)} tensors missing, {len(read.unexpected)} unexpected, such as "
            f"{min(read.missing or read.unexpected)}); use config and weights of one release",
        )
    return read.network


def _of_diffusers(kind: Any, folder: Path) -> Loaded:
    """Read a network that only diffusers has."""
    from diffusers.utils import logging as diffusers_logging

    # diffusers fills what a file lacks with fresh weights, and says so in its log alone.
    was = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        network, told = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    finally:
        diffusers_logging.set_verbosity(was)
    return Loaded(network, list(told["missing_keys"]), list(told["unexpected_keys"]))
