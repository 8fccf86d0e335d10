"""Tiny diffusion decoders as LTX-2.5's."""

from typing import Any

import torch

from omniforcing.networks.diffusion_decoder import LTX2VideoDiffusionDecoderModel

SIZES: dict[str, Any] = {
    "decoder_head_dim": 16,
    "decoder_stage_channels": (64, 32, 16, 16, 16),
    "decoder_upsample_channel_reductions": (2, 2, 1, 1),
    "decoder_t_emb_dim": 16,
}
# Released kernels in time, fewer layers; one latent in space.
LONG = {
    **SIZES,
    "latent_channels": 8,
    "decoder_stage_depths": (1, 2, 1, 1, 2),
    "decoder_stage_kernels": ((3, 1, 1),) * 4,
    "decoder_stage5_kernel": (11, 1, 1),
}
# Windows in space, too, smaller than the grid, which is no multiple of a tile.
WIDE = {
    **SIZES,
    "latent_channels": 8,
    "decoder_upsample_strides": ((1, 2, 2), (2, 1, 1), (2, 1, 1), (2, 1, 1)),
    "spatial_compression_ratio": 8,
    "decoder_stage_depths": (1, 1, 1, 1, 1),
    "decoder_stage_kernels": ((3, 1, 1), (3, 3, 3), (3, 3, 3), (3, 3, 5)),
    "decoder_stage5_kernel": (11, 3, 5),
}
# The same for latents of 16x16 pixels, as the tiny codecs' are.
LARGE = {**WIDE, "patch_size": 8, "spatial_compression_ratio": 16}
# The quickest for them: attention in time alone.
QUICK = {
    **LONG,
    "decoder_upsample_strides": ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)),
    "decoder_stage_depths": (1, 1, 1, 1, 1),
    "patch_size": 16,
    "spatial_compression_ratio": 16,
}


def tiny_decoder(config: dict[str, Any]) -> LTX2VideoDiffusionDecoderModel:
    """A decoder with random weights, none of which keeps its start value."""
    torch.manual_seed(0)
    made = LTX2VideoDiffusionDecoderModel(**config).eval().requires_grad_(False)
    for parameter in made.parameters():
        scale = 0.3 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.add_(scale * torch.randn(parameter.shape))
    return made
