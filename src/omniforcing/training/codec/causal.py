"""A causal video decoder out of a non-causal one, which stays its teacher, on latents alone.

LTX-2's released decoder looks both ways in time, so it cannot be streamed exactly. The causal one has the same modules and
starts from the same weights: every kernel keeps its taps on the past and the present, and what it had for the future falls
on the present, as if the last frame stood still. Regression of the teacher's pictures then makes up for what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.config import DecoderConfig
from omniforcing.core.random import step_generator
from omniforcing.training.codec.training import SHARPNESS, CodecTraining, LossAndLog, foreground

Target = Callable[[Tensor, Tensor], Tensor]


def with_decoder(vae: Any, causal: bool) -> Any:
    """A copy of a video VAE whose decoder is causal or not; its weights are the same."""
    twin = type(vae).from_config({**vae.config, "decoder_causal": causal})
    twin.load_state_dict(vae.state_dict())
    return twin.eval()


@torch.no_grad()
def keep_still(decoder: Any) -> None:
    """Turn the kernels of a non-causal decoder, in place, into those of a causal one that sees the last frame stand still."""
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d

    for module in decoder.modules():
        if isinstance(module, LTX2VideoCausalConv3d):
            weight = module.conv.weight
            centre = weight.shape[2] // 2
            past, future = weight[:, :, : centre + 1].clone(), weight[:, :, centre + 1 :].sum(2)
            weight.zero_()
            weight[:, :, centre:] = past
            weight[:, :, -1] += future


class DecoderTraining(CodecTraining):
    """A video decoder regresses pictures, in which what moves counts ``foreground_weight`` times more than what stays.

    Args:
        decoder: the decoder alone.
        target: pictures ``[B, 3, T, H, W]`` in [-1, 1] for latents ``[B, C, t, h, w]`` and whatever the batch brings along.
    """

    config: DecoderConfig

    def __init__(self, decoder: Any, config: DecoderConfig, seed: int, target: Target) -> None:
        # Plain layout makes small 3-D convolutions several times slower on a CPU.
        super().__init__(decoder.to(memory_format=torch.channels_last_3d), config, seed)
        self.target = target
        decoder.gradient_checkpointing = config.recompute

    def training_step(self, step: int, batch: tuple[Tensor, Tensor, tuple[int, int]]) -> LossAndLog:
        del step  # nothing here is random or scheduled
        z, known, (first, stop) = batch
        pixels = self.target(z, known)
        others = pixels[:, :, torch.linspace(0, pixels.shape[2] - 1, 8).round().long()]
        weight = 1 + self.config.foreground_weight * foreground(pixels, others)
        error, weight = (x[:, :, first:stop] for x in (self.net(z).float() - pixels, weight))
        loss = (weight * (error.square() + SHARPNESS * error.abs())).mean() / weight.mean()
        return loss, {"loss": loss.detach(), "mse": error.square().mean().detach()}


def latent_crops(
    z: Tensor, frames: Tensor | None, config: DecoderConfig, seed: int
) -> Callable[[int], tuple[Tensor, Tensor, tuple[int, int]]]:
    """A function from the step to latents ``[B, C, t, h, w]``, their frames uint8 ``[B, T, H, W, 3]``, and
    the first and the end of those frames that count.

    At a cut within a clip, ``config.context`` latents only lend context: a decoder would be blamed for what it cannot see.

    Args:
        z: what the decoder takes, ``[N, C, T, h, w]``.
        frames: of the same clips, ``[N, 1 + 8 (T - 1), H, W, 3]``; None if the target does without.
    """
    length = min(config.latents, z.shape[2])

    def draw(step: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
        generator = step_generator(seed, step, "latent crops")
        clips = torch.randint(len(z), (config.batch,), generator=generator)
        first = int(torch.randint(z.shape[2] - length + 1, (), generator=generator))
        cut_before, cut_behind = first > 0, first + length < z.shape[2]
        last = 8 * (length - 1)
        counted = 8 * config.context * cut_before, 1 + last - 8 * config.context * cut_behind
        known = (
            z.new_empty(0) if frames is None else frames[clips, 8 * first : 8 * first + last + 1]
        )
        return (
            z[clips, :, first : first + length].contiguous(memory_format=torch.channels_last_3d),
            known,
            counted,
        )

    return draw
