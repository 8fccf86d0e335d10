"""Training of a causal video decoder with a non-causal one as its teacher, on latents alone.

LTX-2's released decoder looks both ways in time, so it cannot be streamed exactly. The causal
decoder has the same modules and starts from the same weights: every kernel keeps its taps on the
past and the present, and its taps on the future are added to the present, as if the last frame
stood still. It then learns to regress the teacher's pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.random import step_generator
from omniforcing.training.codec.training import (
    SHARPNESS,
    CodecTraining,
    LossAndLog,
    foreground,
)
from omniforcing.training.compat import checkpoint_blocks
from omniforcing.training.config import CausalDecoderConfig

Target = Callable[[Tensor, Tensor], Tensor]


def with_decoder(vae: Any, causal: bool) -> Any:
    """Copy a video VAE, with a decoder that is causal or not and has the same weights."""
    twin = type(vae).from_config({**vae.config, "decoder_causal": causal})
    twin.load_state_dict(vae.state_dict())
    return twin.eval()


@torch.no_grad()
def keep_still(decoder: Any) -> None:
    """Make a decoder's kernels causal, in place, as if the last frame stood still."""
    for module in decoder.modules():
        if type(module).__name__ == "LTX2VideoCausalConv3d":
            weight = module.conv.weight
            centre = weight.shape[2] // 2
            past, future = weight[:, :, : centre + 1].clone(), weight[:, :, centre + 1 :].sum(2)
            weight.zero_()
            weight[:, :, centre:] = past
            weight[:, :, -1] += future


class DecoderTraining(CodecTraining):
    """A video decoder regresses pictures; moving pixels count ``foreground_weight`` times more.

    Args:
        decoder: the decoder alone.
        config: sizes, optimiser and whether activations are recomputed.
        seed: the run's seed.
        target: gives the pictures ``[B, 3, T, H, W]`` in [-1, 1] for latents ``[B, C, t, h, w]``
            and the batch's known frames.
    """

    config: CausalDecoderConfig

    def __init__(
        self, decoder: Any, config: CausalDecoderConfig, seed: int, target: Target
    ) -> None:
        # Plain layout makes small 3-D convolutions several times slower on a CPU.
        super().__init__(decoder.to(memory_format=torch.channels_last_3d), config, seed)
        self.target = target
        if config.recompute:
            checkpoint_blocks(decoder)

    def training_step(self, step: int, batch: tuple[Tensor, Tensor, tuple[int, int]]) -> LossAndLog:
        del step  # nothing here is random or scheduled
        z, known, (first, stop) = batch
        pixels = self.target(z, known)
        others = pixels[:, :, torch.linspace(0, pixels.shape[2] - 1, 8).round().long()]
        weight = 1 + self.config.foreground_weight * foreground(pixels, others)
        weight = weight[:, :, first:stop]
        error = (self.net(z).float() - pixels)[:, :, first:stop]
        loss = (weight * (error.square() + SHARPNESS * error.abs())).mean() / weight.mean()
        return loss, {"loss": loss.detach(), "mse": error.square().mean().detach()}


def latent_crops(
    z: Tensor, frames: Tensor | None, config: CausalDecoderConfig, seed: int
) -> Callable[[int], tuple[Tensor, Tensor, tuple[int, int]]]:
    """Make a function from the step to a batch of crops.

    At a cut within a clip, ``config.context`` latents only lend context and their frames do not
    count: the decoder lacks the latents that it would need for them.

    Args:
        z: inputs of the decoder, ``[N, C, T, h, w]``.
        frames: frames of the same clips, uint8 ``[N, 1 + 8 (T - 1), H, W, 3]``; None if the
            target does not need them.
        config: sizes of crops and batch.
        seed: the run's seed.

    Returns:
        It gives latents ``[B, C, t, h, w]``, frames ``[B, T, H, W, 3]``, and first and end of the
        frames that count.
    """
    length = min(config.latents, z.shape[2])

    def draw(step: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
        generator = step_generator(seed, step, "latent crops")
        clips = torch.randint(len(z), (config.batch,), generator=generator)
        first = int(torch.randint(z.shape[2] - length + 1, (), generator=generator))
        cut_before, cut_behind = first > 0, first + length < z.shape[2]
        last = 8 * (length - 1)
        counted = 8 * config.context * cut_before, 1 + last - 8 * config.context * cut_behind
        known = z.new_empty(0)
        if frames is not None:
            known = frames[clips, 8 * first : 8 * first + last + 1]
        cut = z[clips, :, first : first + length]
        return cut.contiguous(memory_format=torch.channels_last_3d), known, counted

    return draw
