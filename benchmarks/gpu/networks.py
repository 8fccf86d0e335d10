"""Networks for the parts: tiny students of every LTX-2 generation, LTX-2's and pocket's codec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from benchmarks.gpu.settings import PartSettings
from benchmarks.student.cases import Case, ltx2, ltx2_core, pocket
from omniforcing.codec.codec import Codec
from omniforcing.core.latents import TextFeatures
from omniforcing.core.pair import Pair
from omniforcing.model.student import RELEASE_CONFIGS
from omniforcing.model.transformer import DualStream
from omniforcing.pocket.foundation import KEPT

# Arguments in which the releases' transformers differ. 2.5-fixed-text does not modulate the prompt
# by sigma, so its keys and values can be cached.
GENERATIONS: dict[str, dict[str, Any]] = {
    **RELEASE_CONFIGS,
    "2.5-fixed-text": {
        **RELEASE_CONFIGS["2.3"],
        "ff_bias": False,
        "use_prompt_adaln_single": False,
    },
}


def tiny_core(generation: str) -> dict[str, Any]:
    """Return the arguments of a generation's transformer: two layers, widths that fp8 supports."""
    return ltx2_core(
        in_channels=16,
        out_channels=16,
        audio_in_channels=16,
        audio_out_channels=16,
        num_attention_heads=4,
        attention_head_dim=32,
        cross_attention_dim=128,
        audio_num_attention_heads=4,
        audio_attention_head_dim=16,
        audio_cross_attention_dim=64,
        num_layers=2,
        caption_channels=128,
        **GENERATIONS[generation],
    )


def tiny_student(generation: str, sinks: int = 4) -> DualStream:
    """Build a student with random fp32 weights on the CPU, the same in every process.

    Every parameter is random and large enough that a wrong mask, window or RoPE table shows.
    """
    student = DualStream(LTX2VideoTransformer3DModel(**tiny_core(generation)), sinks).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.numel():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return student


def features(student: DualStream, length: int = 8) -> TextFeatures:
    """Draw text features ``[1, L, D]`` on the CPU, in the widths that a student takes."""
    config = student.core.config
    widths = Pair(config.caption_channels, config.caption_channels)
    if not config.use_prompt_embeddings:
        widths = Pair(config.cross_attention_dim, config.audio_cross_attention_dim)
    generator = torch.Generator().manual_seed(2)
    return widths.map(lambda width: torch.randn(1, length, width, generator=generator))


def student_case(settings: PartSettings) -> Case:
    """Return the student to time: LTX-2.0 at 512x768 in bf16.

    At tiny size: two layers of the pocket student's architecture.
    """
    if not settings.small:
        return ltx2()
    case = pocket().with_layers(2)
    return replace(case, rollout=replace(case.rollout, window=2, horizon=3), codec=None)


# Arguments in which LTX-2.3's and 2.5's video decoder differs from 2.0's, diffusers' default.
_DECODER_2_3: dict[str, Any] = {
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_spatial_padding_mode": "zeros",
}
DECODERS: dict[str, dict[str, Any]] = {"2.0": {}, "2.3": _DECODER_2_3}


def video_vae_arguments(generation: str, causal: bool) -> dict[str, Any]:
    """Return the arguments of diffusers' video VAE for a generation's decoder.

    Args:
        generation: a key of ``DECODERS``.
        causal: whether the decoder is adapted to a causal one; else it is as released.
    """
    ratios = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
    return {**DECODERS[generation], **ratios, "decoder_causal": causal}


def streaming_codec(settings: PartSettings, causal: bool, generation: str = "2.0") -> Codec:
    """Build a codec to decode streams: LTX-2's sizes, random weights, video VAE in bf16 on a GPU.

    Args:
        settings: of the part; at tiny size the kept pocket codec takes its place.
        causal: whether the video decoder is adapted to a causal one; else it looks ahead, as the
            released one does.
        generation: of the video decoder; sound is LTX-2.0's, as later vocoders do not stream yet.
    """
    if settings.small:
        return small_codec(causal)
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    with torch.device(settings.device):  # the other defaults are LTX-2.0's sizes
        video = AutoencoderKLLTX2Video(**video_vae_arguments(generation, causal))
        audio, vocoder = AutoencoderKLLTX2Audio(), LTX2Vocoder()
    video.encoder = None  # a stream does not encode
    if settings.cuda:
        video.to(torch.bfloat16)
    return Codec(video, audio, vocoder, 512, 768)


def small_codec(causal: bool) -> Codec:
    """Load the kept pocket codec; if not ``causal``, with a video decoder that looks ahead."""
    from omniforcing.training.codec.causal import with_decoder

    codec = Codec.load(kept_folder("codec"))
    if causal:
        return codec
    video = with_decoder(codec.video_vae, causal=False)
    return Codec(video, codec.audio_vae, codec.vocoder, codec.height, codec.width)


def kept_folder(part: str) -> Path:
    """Return a folder of the trained foundation that the package ships."""
    return KEPT / part


def random_tensor(shape: tuple[int, ...], settings: PartSettings, seed: int = 0) -> Tensor:
    """Draw Gaussian numbers on the device."""
    generator = torch.Generator(settings.torch_device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=settings.device)
