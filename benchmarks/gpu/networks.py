"""Networks of random weights for the parts: tiny ones of every LTX-2 generation, LTX-2's codec, the pocket world's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from benchmarks.gpu.setup import Setup
from benchmarks.student import Case, ltx2, ltx2_core, pocket
from omniforcing.codec.codec import Codec
from omniforcing.core.latents import Pair, TextFeatures
from omniforcing.model.transformer import DualStream
from omniforcing.pocket.foundation import KEPT

_PROMPT_MODULATION = {
    **dict.fromkeys(
        ("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod"), True
    ),
    "use_prompt_embeddings": False,
}
# What sets the architectures of the releases apart; the last is 2.5's other, cacheable kind.
GENERATIONS: dict[str, dict[str, Any]] = {
    "2.0": {},
    "2.3": _PROMPT_MODULATION,
    "2.5": {**_PROMPT_MODULATION, "ff_bias": False, "use_keyframes_abs_pos_embedding": True},
    "2.5-fixed-text": {**_PROMPT_MODULATION, "ff_bias": False, "use_prompt_adaln_single": False},
}


def tiny_core(generation: str) -> dict[str, Any]:
    """Two layers of a generation in widths that fp8 products take."""
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
    """A student of random weights in fp32 on the CPU, the same in every process.

    Every parameter is random and large enough that a wrong mask, window or table shows.
    """
    student = DualStream(LTX2VideoTransformer3DModel(**tiny_core(generation)), sinks).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.numel():
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
                )
    return student


def features(student: DualStream, length: int = 8) -> TextFeatures:
    """Text features ``[1, L, D]`` in the widths that a student takes, drawn on the CPU."""
    config = student.core.config
    wide = (config.caption_channels, config.caption_channels)
    if not config.use_prompt_embeddings:
        wide = (config.cross_attention_dim, config.audio_cross_attention_dim)
    generator = torch.Generator().manual_seed(2)
    video, audio = (torch.randn(1, length, width, generator=generator) for width in wide)
    return Pair(video, audio)


def student_case(setup: Setup) -> Case:
    """The student to be timed: LTX-2.0 at 512x768 in bf16; small: two layers of the pocket student's architecture."""
    if not setup.small:
        return ltx2()
    case = pocket()
    rollout = replace(case.rollout, window=2, horizon=3)
    return replace(case, core={**case.core, "num_layers": 2}, rollout=rollout, codec=None)


# What sets LTX-2.3's and 2.5's convolutional decoder apart from 2.0's, which is diffusers' default.
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
    """Arguments of diffusers' video VAE for the decoder of a generation, as released or adapted to a causal one."""
    ratios = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
    return {**DECODERS[generation], **ratios, "decoder_causal": causal}


def streaming_codec(setup: Setup, causal: bool, generation: str = "2.0") -> Codec:
    """The codec that streams are decoded with: LTX-2's sizes with random weights, its video VAE in bf16 on a GPU.

    Args:
        causal: whether the video decoder is adapted to a causal one, or looks both ways as the released one does.
        generation: of the video decoder; sound is LTX-2.0's, for the later vocoder is not streamed yet.
    """
    if setup.small:
        return small_codec(causal)
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    with torch.device(setup.device):  # the other defaults are LTX-2.0's sizes
        video = AutoencoderKLLTX2Video(**video_vae_arguments(generation, causal))
        audio, vocoder = AutoencoderKLLTX2Audio(), LTX2Vocoder()
    video.encoder = None  # a stream has no use for it
    if setup.cuda:
        video.to(torch.bfloat16)
    return Codec(video, audio, vocoder, 512, 768)


def small_codec(causal: bool) -> Codec:
    """The kept pocket codec, or the same with its video decoder looking both ways."""
    from omniforcing.training.codec.causal import with_decoder

    codec = Codec.load(kept("codec"))
    if causal:
        return codec
    video = with_decoder(codec.video_vae, causal=False)
    return Codec(video, codec.audio_vae, codec.vocoder, codec.height, codec.width)


def kept(part: str) -> Path:
    """A folder of the foundation that the package keeps."""
    return KEPT / part


def random_like(shape: tuple[int, ...], setup: Setup, seed: int = 0) -> Tensor:
    """Gaussian numbers drawn on the device."""
    generator = torch.Generator(setup.torch_device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=setup.device)
