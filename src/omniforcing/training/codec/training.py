"""Training of the codec's three networks, one module each.

Whether so small a video VAE learns at all depends on its start (``initialise_video``): its encoder
begins as a linear projection on the principal components of its own inputs, with every residual
branch silent. Crops grow from single frames to a second and more. Randomness inside a step
depends on the seed and the step alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from omniforcing.codec.codec import to_pixels
from omniforcing.codec.config import AudioCodecConfig, CropConfig, VideoCodecConfig, VocoderConfig
from omniforcing.core.layout import HOP, SAMPLE_RATE
from omniforcing.core.random import step_generator

WARMUP = 60  # steps
# Log-variance of a fresh posterior: at 0 it collapses onto the prior before it carries anything.
LOG_VARIANCE = -6.0
# Mean difference from the clip's other frames, in [-1, 1], from which on a pixel is foreground.
CONTRAST = 0.2
OTHERS = 8  # frames that represent the whole clip
SHARPNESS = 0.05  # weight of the absolute error next to the squared one
WINDOWS = (256, 512, 1024, 2048)  # samples; the longest tells apart tones that a mel frame cannot
FIRST_FLOOR, LAST_FLOOR = 0.1, 0.01  # magnitudes: 55 and 75 dB below a full tone
SPACING = 200  # Hz between the oscillators that a vocoder starts with
QUIET = 0.03  # initial loudness, as a share of the oscillators' own
PRECISION = "bf16-mixed"
FOREGROUND_WEIGHT, LOUD_WEIGHT = 10.0, 4.0  # balls and impacts are small parts of their clip
KL_FROM = 0.6  # share of the steps; earlier the posterior collapses (docs/results/pocket.md)
MEL_CROP = 101  # frames: a second of sound, for the audio VAE
Batches = Callable[[int], Iterator[Any]]
LossAndLog = tuple[Tensor, dict[str, Tensor]]  # the loss to minimise, and values to log by name


class CodecTraining(nn.Module):
    """One network of the codec: AdamW, a short warm-up, then a cosine to zero.

    In each step the training loop calls ``training_step``, the loss's backward and ``clip``, then
    steps the optimiser and the schedule. For mixed precision, ``training_step`` runs under
    autocast.
    """

    kl: float  # weight of the KL term that keeps latents smooth, of a part that has one

    def __init__(self, net: Any, config: Any, seed: int) -> None:
        super().__init__()
        self.net, self.config, self.seed = net, config, seed
        self.net.requires_grad_(True).train()

    def training_step(self, step: int, batch: Any) -> LossAndLog:
        """Compute the loss of a batch, and the values to log."""
        raise NotImplementedError

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """Build the optimiser and its learning-rate schedule, to be stepped once per step."""
        optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=self.config.lr, betas=(0.9, 0.99), weight_decay=1e-4
        )
        return optimiser, LambdaLR(optimiser, self._rate)

    def _rate(self, step: int) -> float:
        done = step / self.config.steps
        return min(1.0, (step + 1) / WARMUP) * (
            0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        )

    def clip(self) -> Tensor:
        """Clip the gradients to a norm of 1 together; return their norm before."""
        return nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)

    def _latents(self, posterior: Any, step: int) -> tuple[Tensor, float]:
        """Latents and KL weight: means without KL at first, then samples with a little KL."""
        if step < KL_FROM * self.config.steps:
            return posterior.mode(), 0.0
        return posterior.sample(step_generator(self.seed, step, "posterior")), self.kl


class VideoVaeTraining(CodecTraining):
    """Reconstruction of pixels; moving ones count ``FOREGROUND_WEIGHT`` times more than others."""

    config: VideoCodecConfig
    kl = 3.0e-4

    def __init__(self, net: Any, config: VideoCodecConfig, seed: int) -> None:
        # Plain layout makes small 3-D convolutions several times slower on a CPU.
        super().__init__(net.to(memory_format=torch.channels_last_3d), config, seed)

    def training_step(self, step: int, batch: tuple[Tensor, Tensor]) -> LossAndLog:
        frames, others = batch
        pixels = to_pixels(frames)
        posterior = self.net.encode(pixels).latent_dist
        z, kl_weight = self._latents(posterior, step)
        decoded = self.net.decode(z.contiguous(memory_format=torch.channels_last_3d)).sample
        error = decoded.float() - pixels
        weight = 1 + FOREGROUND_WEIGHT * foreground(pixels, to_pixels(others))
        loss = (weight * (error.square() + SHARPNESS * error.abs())).mean() / weight.mean()
        kl = divergence(posterior)
        return loss + kl_weight * kl, {"reconstruction": loss.detach(), "kl": kl.detach()}


class AudioVaeTraining(CodecTraining):
    """Reconstruction of log-mels; sound counts ``LOUD_WEIGHT`` times more than silence."""

    config: AudioCodecConfig
    kl = 1.0e-4

    def training_step(self, step: int, batch: Tensor) -> LossAndLog:
        mel = batch
        posterior = self.net.encode(mel).latent_dist
        z, kl_weight = self._latents(posterior, step)
        error = (self.net.decode(z).sample.float() - mel).abs()
        quiet, loud = mel.amin((1, 2, 3), keepdim=True), mel.amax((1, 2, 3), keepdim=True)
        weight = 1 + LOUD_WEIGHT * (mel - quiet) / (loud - quiet).clamp(min=1)
        loss = (weight * error).mean() / weight.mean()
        kl = divergence(posterior)
        return loss + kl_weight * kl, {"reconstruction": loss.detach(), "kl": kl.detach()}


class VocoderTraining(CodecTraining):
    """Waveforms from log-mels, by their spectra at several resolutions, loud parts first."""

    config: VocoderConfig

    def training_step(self, step: int, batch: tuple[Tensor, Tensor]) -> LossAndLog:
        mel, samples = batch
        found = self.net(mel).float()
        floor = FIRST_FLOOR * (LAST_FLOOR / FIRST_FLOOR) ** (step / self.config.steps)
        loss = spectral_distance(found, samples, floor)
        loudness = found.std() / samples.std().clamp(min=1e-4)
        return loss, {"spectra": loss.detach(), "loudness": loudness.detach()}


# --- losses --------------------------------------------------------------------------------------


def divergence(posterior: Any) -> Tensor:
    """KL from the standard normal per latent number, a scalar."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def foreground(pixels: Tensor, others: Tensor) -> Tensor:
    """Measure how far pixels differ from other frames of their clip.

    The mean difference, not the difference from the median: an object that covers a place for
    more than half of the clip, such as a ball that bounces low, would count as background there.

    Args:
        pixels: ``[B, 3, T, H, W]`` in [-1, 1].
        others: frames ``[B, 3, R, H, W]`` of the same clips.

    Returns:
        ``[B, 1, T, H, W]`` in [0, 1].
    """
    apart = [(pixels - other).abs().mean(1, keepdim=True) for other in others.split(1, 2)]
    return (torch.stack(apart).mean(0) / CONTRAST).clamp(max=1)


def spectral_distance(found: Tensor, samples: Tensor, floor: float) -> Tensor:
    """Multi-resolution STFT loss: relative error of magnitudes plus error of their logarithms.

    Args:
        found: samples ``[B, 2, N]``.
        samples: target ``[B, 2, N]``.
        floor: added to the magnitudes (as a root of squares), so that near silence does not
            outweigh audible sound.
    """
    total = found.new_zeros(())
    for window in WINDOWS:
        a, b = (_magnitudes(x, window, floor) for x in (found, samples))
        total = total + (a - b).norm() / b.norm().clamp(min=1e-3) + (a.log() - b.log()).abs().mean()
    return total / len(WINDOWS)


def _magnitudes(samples: Tensor, window: int, floor: float) -> Tensor:
    hann = torch.hann_window(window, device=samples.device)
    spectrum = torch.stft(
        samples.flatten(0, 1), window, window // 4, window=hann, return_complex=True
    )
    return (spectrum.real.square() + spectrum.imag.square() + floor**2).sqrt()


# --- where training starts -----------------------------------------------------------------------


@torch.no_grad()
def initialise_video(vae: Any, pixels: Tensor) -> None:
    """Start the VAE as a linear codec of ``pixels [B, 3, T, H, W]``, T of 9 or more.

    Residual branches are silent, so that space-to-depth alone leads from the patches to the
    latents and back; the first and the last convolution of the encoder project on principal
    components, whitened.
    """
    for name, module in vae.named_modules():
        sampler = "samplers" in name and hasattr(module, "stride") and hasattr(module, "conv")
        if name.endswith("conv2") or sampler:
            inner = module.conv.conv if hasattr(module.conv, "conv") else module.conv
            inner.weight.zero_()
            inner.bias.zero_()
    encoder, last = vae.encoder, vae.decoder.conv_out.conv
    for conv in (encoder.conv_in, encoder.conv_out):
        features = _inputs(conv, lambda: encoder(pixels))
        # The first latent sees one frame only: the others are what must be packed well.
        _project_on_principal_components(conv.conv, features[:, :, 1:], vae.config.latent_channels)
    encoder.conv_out.conv.weight[-1].zero_()
    encoder.conv_out.conv.bias[-1] = LOG_VARIANCE
    last.weight.mul_(0.3)
    last.bias.copy_(pixels.mean((0, 2, 3, 4)).repeat_interleave(vae.config.patch_size**2))


@torch.no_grad()
def initialise_audio(vae: Any, mels: Tensor) -> None:
    """Fold mean and deviation of log-mels ``[B, 2, T, F]`` into the outer convolutions; whiten."""
    mean, std = mels.mean(), mels.std()
    _fold_input(vae.encoder.conv_in.conv, mean, std)
    out = vae.encoder.conv_out.conv
    features = _inputs(vae.encoder.conv_out, lambda: vae.encoder(mels))
    channels = vae.config.latent_channels
    _project_on_principal_components(out, features, channels)
    out.weight[channels:].zero_()
    out.bias[channels:] = LOG_VARIANCE
    last = vae.decoder.conv_out.conv
    last.weight.mul_(std)
    last.bias.copy_(last.bias * std + mean)


@torch.no_grad()
def initialise_vocoder(vocoder: Any, mels: Tensor) -> None:
    """Start the vocoder as a bank of oscillators, driven by the level of log-mels ``[B, 2, T, F]``.

    The last upsampler's kernels are windowed cosines and sines of evenly spaced frequencies,
    residual branches are silent, and rectified pairs of channels cancel to a linear output:
    loudness and phase are left to learn.
    """
    _fold_input(vocoder.conv_in, mels.mean(), mels.std())
    for block in vocoder.resnets:
        for conv in block.convs2:
            conv.weight.zero_()
            conv.bias.zero_()
    bank = vocoder.upsamplers[-1]
    inputs, outputs, taps = bank.weight.shape
    frequencies = (torch.arange(inputs) // 2 + 0.5) * SPACING / SAMPLE_RATE
    # Every other channel a quarter of a turn later: cosine and sine of one frequency.
    turns = frequencies[:, None] * (torch.arange(taps) - taps / 2)
    turns = turns + (torch.arange(inputs) % 2)[:, None] / 4
    waves = torch.cos(2 * math.pi * turns) * torch.hann_window(taps) * bank.stride[0] / taps
    signs = 1.0 - 2 * (torch.arange(outputs) % 2)
    bank.weight.copy_(waves[:, None] * signs[:, None])
    bank.bias.zero_()
    out = vocoder.conv_out
    out.weight.zero_()
    out.bias.zero_()
    for side in range(vocoder.out_channels):
        heard = torch.arange(outputs) // 2 % vocoder.out_channels == side
        out.weight[side, :, out.kernel_size[0] // 2] = heard * signs * QUIET * 4 / outputs


def _fold_input(conv: Any, mean: Tensor, std: Tensor) -> None:
    conv.weight.div_(std)
    conv.bias.sub_(conv.weight.flatten(1).sum(1) * mean)


def _inputs(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """Input of ``module`` while ``run`` runs."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    run()
    hook.remove()
    return seen[0]


def _project_on_principal_components(conv: Any, features: Tensor, count: int) -> None:
    """Set a causal convolution to project on whitened principal components.

    Args:
        conv: the convolution; its first ``count`` outputs are set.
        features: its inputs ``[B, C, T, ...]``.
        count: number of components.
    """
    flat = features.movedim(1, -1).flatten(0, -2).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    count = min(count, len(values))
    rows = (vectors[:, -count:] / values[-count:].clamp(min=1e-8).sqrt()).T.flip(0)
    now = (slice(0, count), slice(None), -1, *(size // 2 for size in conv.kernel_size[1:]))
    conv.weight[:count] = 0
    conv.weight[now] = rows.to(conv.weight.dtype)
    conv.bias[:count] = -(rows @ mean).to(conv.bias.dtype)


# --- batches -------------------------------------------------------------------------------------


def batches_of(draw: Callable[[int], Any], steps: int, every: int) -> Batches:
    """Batches by epoch, for epochs of ``every`` steps; ``draw(step)`` makes each batch."""
    every = min(every, steps)

    def batches(epoch: int) -> Iterator[Any]:
        for step in range(epoch * every, min(steps, (epoch + 1) * every)):
            yield draw(step)

    return batches


def crop_at(crops: list[CropConfig], done: float) -> CropConfig:
    """The leg of the curriculum after the share ``done`` of all steps."""
    for crop in crops:
        done -= crop.share
        if done < 0:
            return crop
    return crops[-1]


def video_crops(
    frames: Tensor, config: VideoCodecConfig, seed: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Make a function from the step to a batch of video crops.

    Args:
        frames: clips, uint8 ``[N, T, H, W, 3]``.
        config: the curriculum.
        seed: the run's seed.

    Returns:
        It gives crops ``[B, t, H, W, 3]``, and frames ``[B, R, H, W, 3]`` from all over their
        clips, by which ``foreground`` tells what moves.
    """
    spread = torch.linspace(0, frames.shape[1] - 1, OTHERS).round().long()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        crop = crop_at(config.crops, step / config.steps)
        generator = step_generator(seed, step, "video crops")
        length = min(crop.frames, frames.shape[1])
        clips = torch.randint(len(frames), (crop.batch,), generator=generator)
        starts = torch.randint(frames.shape[1] - length + 1, (crop.batch,), generator=generator)
        places = zip(clips.tolist(), starts.tolist(), strict=True)
        cut = torch.stack([frames[c, s : s + length] for c, s in places])
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        others = frames[clips[:, None], spread]
        return (cut.flip(3), others.flip(3)) if mirrored else (cut, others)

    return draw


def mel_crops(mels: Tensor, config: AudioCodecConfig, seed: int) -> Callable[[int], Tensor]:
    """Make a function from the step to crops ``[B, 2, t, F]`` of log-mels ``[N, 2, T, F]``."""
    length = min(MEL_CROP, mels.shape[2])

    def draw(step: int) -> Tensor:
        places = _places(mels, config.batch, length, seed, step, "mel crops")
        return torch.stack([mels[c, :, s : s + length] for c, s in places])

    return draw


def sound_crops(
    mels: Tensor, decoded: Tensor, samples: Tensor, config: VocoderConfig, seed: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Make a function from the step to log-mels ``[B, 2, m, F]`` and samples ``[B, 2, 160 m]``.

    Half of the log-mels are those of the clips, half are decoded by the audio VAE: the vocoder
    will be used on the latter.

    Args:
        mels: log-mels of the clips, ``[N, 2, T, F]``.
        decoded: the same, encoded and decoded by the audio VAE.
        samples: samples of the clips, ``[N, 2, 160 (T - 1)]``.
        config: sizes of crops and batch.
        seed: the run's seed.
    """

    def draw(step: int) -> tuple[Tensor, Tensor]:
        length = min(config.mel_frames, mels.shape[2] - 1)
        places = _places(mels[:, :, :-1], config.batch, length, seed, step, "sound crops")
        sources = [(mels, decoded)[i % 2] for i in range(config.batch)]
        cut = [source[c, :, s : s + length] for source, (c, s) in zip(sources, places, strict=True)]
        heard = [samples[c, :, HOP * s : HOP * (s + length)] for c, s in places]
        return torch.stack(cut), torch.stack(heard)

    return draw


def _places(
    mels: Tensor, batch: int, length: int, seed: int, step: int, stream: str
) -> list[tuple[int, int]]:
    """Clip and first frame of each crop of a step."""
    generator = step_generator(seed, step, stream)
    clips = torch.randint(len(mels), (batch,), generator=generator).tolist()
    starts = torch.randint(mels.shape[2] - length + 1, (batch,), generator=generator).tolist()
    return list(zip(clips, starts, strict=True))
