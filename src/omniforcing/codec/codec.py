"""The codec: LTX-2's video VAE, audio VAE and vocoder joined, between media and normalised latents.

Latents are normalised per channel by the VAEs' buffers ``latents_mean`` and ``latents_std``. On
disk a codec is a folder: ``video_vae/``, ``audio_vae/``, ``vocoder/`` and, where a diffusion model
makes the pictures, ``diffusion_decoder/``, as diffusers saves them, and ``codec.json``. The text
encoder's folder ``text/`` lies in it too (``codec.text``).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.codec.config import DIFFUSION_DECODER, CodecConfig, VideoDecoder
from omniforcing.codec.diffusion import decode_with_noise, refuse_misfit
from omniforcing.codec.networks import (
    CodecError,
    build_audio_vae,
    build_video_vae,
    build_vocoder,
    load_diffusion_decoder,
    load_parts,
    refuse_other_rates,
)
from omniforcing.codec.reach import (
    DIFFUSION,
    Reach,
    SoundReach,
    described_reach,
    described_sound_reach,
    sound_reach,
    video_reach,
)
from omniforcing.core.files import read_json, write_json
from omniforcing.core.latents import Latents
from omniforcing.core.layout import (
    Counts,
    LayoutError,
    clip_frames,
    clip_samples,
    clip_seconds,
)
from omniforcing.core.pair import Media, Pair

DESCRIPTION = "codec.json"
SCHEMA = 1


class Codec(nn.Module):
    """Encode media to normalised latents and decode them.

    Args:
        video_vae: ``AutoencoderKLLTX2Video``.
        audio_vae: ``AutoencoderKLLTX2Audio``.
        vocoder: ``LTX2Vocoder`` or ``LTX2VocoderWithBWE``.
        height: height in pixels of the clips that the codec is trained or used for.
        width: width of the same.
        reach: how a video decoder that is not causal is streamed; by default as ``video_reach``
            says.
        sound: how the vocoder is streamed; by default as ``sound_reach`` says.
        diffusion: LTX-2.5's diffusion decoder, which then makes the pictures instead of the VAE.

    Raises:
        CodecError: if the picture does not divide into tokens or is too small for the diffusion
            decoder, or the vocoder's upsampling does not give the sample rate that its config
            states.
    """

    def __init__(
        self,
        video_vae: Any,
        audio_vae: Any,
        vocoder: Any,
        height: int,
        width: int,
        reach: Reach | None = None,
        sound: SoundReach | None = None,
        diffusion: Any = None,
    ) -> None:
        super().__init__()
        plain = video_reach(video_vae.config) if diffusion is None else DIFFUSION
        self.video_reach, self._sound_reach = reach or plain, sound
        self.video_vae, self.audio_vae, self.vocoder = video_vae, audio_vae, vocoder
        self.diffusion, self.height, self.width = diffusion, height, width
        grid = self.token_grid(height, width)
        if diffusion is not None:
            refuse_misfit(diffusion, video_vae, grid)
        refuse_other_rates(vocoder.config)
        self.requires_grad_(False).eval()
        # In the default layout small 3-D convolutions are several times slower on a CPU.
        self.video_vae.to(memory_format=torch.channels_last_3d)

    @classmethod
    def from_config(cls, config: CodecConfig, height: int, width: int) -> Codec:
        """Build a codec with fresh weights for clips of ``height`` by ``width`` pixels."""
        vocoder = build_vocoder(config.vocoder)
        return cls(
            build_video_vae(config.video), build_audio_vae(config.audio), vocoder, height, width
        )

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Codec:
        """Read a codec folder; weights of any precision become float32.

        Args:
            folder: codec folder.
            device: device to put it on.

        Raises:
            CodecError: if the schema is another, or a part is missing, unreadable or of another
                class.
        """
        description = read_json(folder / DESCRIPTION)
        if description.get("schema") != SCHEMA:
            raise CodecError(
                "file.unknown-schema",
                f"{folder / DESCRIPTION} has schema {description.get('schema')}; "
                f"this version reads {SCHEMA}",
            )
        parts = load_parts(folder)
        reaches = described_reach(description), described_sound_reach(description)
        by_diffusion = description.get("video_decoder") == VideoDecoder.diffusion.value
        diffusion = load_diffusion_decoder(folder) if by_diffusion else None
        size = description["height"], description["width"]
        return cls(*parts, *size, *reaches, diffusion).to(device)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the codec into ``folder``, its weights as ``dtype``; this object keeps its own."""
        for name, part in (
            ("video_vae", self.video_vae),
            ("audio_vae", self.audio_vae),
            ("vocoder", self.vocoder),
            (DIFFUSION_DECODER, self.diffusion),
        ):
            if part is None:
                continue
            copy = type(part).from_config(part.config)
            # Not ``copy.to``: diffusers' own warns about modules that are not there.
            nn.Module.to(copy, dtype)
            copy.load_state_dict(part.state_dict())
            copy.save_pretrained(folder / name)
        write_json(folder / DESCRIPTION, self.describe())

    def describe(self) -> dict[str, Any]:
        """Return the content of ``codec.json``: sizes, and the look-ahead of the decoders."""
        tokens, video, audio = self.latent_shape(self.height, self.width)
        return {
            "schema": SCHEMA,
            "height": self.height,
            "width": self.width,
            "grid": list(self.token_grid(self.height, self.width)),
            "tokens": tokens,
            "video_channels": video,
            "audio_channels": audio,
            "sample_rate": self.sample_rate,
            "video_decoder": self.video_decoder.value,
            "video_decoder_causal": self.diffusion is None
            and bool(self.video_vae.config.decoder_causal),
            "video_reach": asdict(self.video_reach),
            "sound_reach": asdict(self.sound_reach),
            "vocoder_look_ahead_mel": self.sound_reach.look_ahead,
        }

    @property
    def video_decoder(self) -> VideoDecoder:
        """Which network makes the pictures."""
        return VideoDecoder.convolutional if self.diffusion is None else VideoDecoder.diffusion

    @property
    def sound_reach(self) -> SoundReach:
        """How the vocoder is streamed.

        Raises:
            StreamingError: if it cannot be.
        """
        return self._sound_reach or sound_reach(self.vocoder.config)

    @property
    def video_channels(self) -> int:
        """Channels of a video latent token."""
        return int(self.video_vae.config.latent_channels)

    @property
    def audio_channels(self) -> int:
        """Channels of an audio latent: channels times frequency bins of the audio VAE."""
        config = self.audio_vae.config
        return int(config.latent_channels * config.mel_bins // self.audio_vae.mel_compression_ratio)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the decoded sound in Hz."""
        return int(self.vocoder.config.output_sampling_rate)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the tokens of a picture of ``height`` by ``width`` pixels.

        Raises:
            CodecError: if the picture does not divide into whole tokens.
        """
        ratio = int(self.video_vae.spatial_compression_ratio)
        if height % ratio or width % ratio:
            raise CodecError(
                "codec.wrong-picture-size",
                f"pictures of {width}x{height} do not divide into tokens of {ratio}x{ratio} pixels",
            )
        return height // ratio, width // ratio

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return tokens per video latent, channels of a token, and channels of an audio latent."""
        rows, columns = self.token_grid(height, width)
        return rows * columns, self.video_channels, self.audio_channels

    @torch.no_grad()
    def encode(self, media: Media) -> Latents:
        """Encode media to normalised posterior means.

        Args:
            media: frames uint8 ``[B, 1+24K, H, W, 3]`` and samples float32 ``[B, 2, 16000K]``.

        Returns:
            Latents: video ``[B, 1+3K, S, Cv]``, audio ``[B, 1+25K, Ca]``.

        Raises:
            LayoutError: if the frames and samples are not those of the same K whole seconds.
        """
        _refuse_other_than_whole_seconds(media.video.shape[1], media.audio.shape[2])
        raw = Pair(self.video_means(media.video), self.audio_means(media.audio))
        return raw.map(normalise, self._vaes)

    def video_means(self, frames: Tensor) -> Tensor:
        """Encode frames uint8 ``[B, T, H, W, 3]`` to unnormalised means ``[B, Tv, S, Cv]``."""
        means = self.video_vae.encode(to_pixels(frames.to(self._device))).latent_dist.mode()
        return means.flatten(3).permute(0, 2, 3, 1)

    def audio_means(self, samples: Tensor) -> Tensor:
        """Encode samples ``[B, 2, N]`` to unnormalised means ``[B, Ta, Ca]``."""
        from omniforcing.media.mel import log_mel

        means = self.audio_vae.encode(log_mel(samples.to(self._device))).latent_dist.mode()
        # Packed as LTX-2 does: all frequency bins of a channel lie together.
        return means.transpose(1, 2).flatten(2)

    @torch.no_grad()
    def decode(self, latents: Latents, grid: tuple[int, int] | None = None, seed: int = 0) -> Media:
        """Decode normalised latents to media.

        Args:
            latents: video ``[B, 1+3K, S, Cv]``, audio ``[B, 1+25K, Ca]``.
            grid: rows and columns of tokens; by default those of the codec's own picture size.
            seed: seed of a diffusion decoder's noise.

        Returns:
            Frames uint8 ``[B, 1+24K, H, W, 3]`` and samples float32 ``[B, 2, K * sample_rate]``.

        Raises:
            LayoutError: if the counts are not those of the same K whole seconds.
            CodecError: if the tokens do not fill the grid.
        """
        seconds = clip_seconds(Counts(latents.video.shape[1], latents.audio.shape[1]))
        z = self.denormalise(latents, grid)
        samples = self.vocoder(self.audio_vae.decode(z.audio).sample)
        # The vocoder turns mel frame m into the samples that follow its centre, so those of the
        # last frame lie past the end of the clip.
        return Pair(
            to_frames(self._pixels(z.video, seed)),
            samples[..., : seconds * self.sample_rate],
        )

    def _pixels(self, z: Tensor, seed: int) -> Tensor:
        if self.diffusion is None:
            return self.video_vae.decode(z).sample
        return decode_with_noise(self.diffusion, z, seed, 0)

    @torch.no_grad()
    def decode_frames(self, z: Tensor) -> Tensor:
        """Decode denormalised video latents by the VAE, one clip at a time.

        Args:
            z: ``[N, C, t, h, w]``.

        Returns:
            Frames uint8 ``[N, T, H, W, 3]`` on the CPU.
        """
        clips = []
        for clip in z.split(1):
            pixels = self.video_vae.decode(clip.to(self._device)).sample
            clips.append(to_frames(pixels).cpu())
        return torch.cat(clips)

    def denormalise(self, latents: Latents, grid: tuple[int, int] | None = None) -> Latents:
        """Turn latents into the decoders' inputs, in the decoders' precision.

        Args:
            latents: normalised, video ``[B, Tv, S, Cv]`` and audio ``[B, Ta, Ca]``.
            grid: rows and columns of tokens; by default those of the codec's own picture size.

        Returns:
            Video ``[B, Cv, Tv, H, W]`` and audio ``[B, c, Ta, f]``.

        Raises:
            CodecError: if the tokens do not fill the grid.
        """
        rows, columns = grid or self.token_grid(self.height, self.width)
        if latents.video.shape[2] != rows * columns:
            raise CodecError(
                "codec.wrong-grid",
                f"video latents have {latents.video.shape[2]} tokens, a grid of {rows}x{columns} "
                f"has {rows * columns}; give the grid of the picture they were encoded from",
            )
        raw = latents.map(
            lambda z, vae: (z * vae.latents_std + vae.latents_mean).to(vae.dtype), self._vaes
        )
        video = raw.video.permute(0, 3, 1, 2).unflatten(3, (rows, columns))
        audio = raw.audio.unflatten(2, (self.audio_vae.config.latent_channels, -1)).transpose(1, 2)
        return Pair(video.contiguous(memory_format=torch.channels_last_3d), audio)

    def normalise_by(self, means: Latents) -> None:
        """Set the latents' statistics to mean and standard deviation per channel of ``means``.

        Args:
            means: unnormalised latents ``[N, T, ..., C]``.
        """
        for z, vae in zip(means, self._vaes, strict=True):
            numbers = z.flatten(0, -2).double()
            vae.latents_mean.copy_(numbers.mean(0))
            vae.latents_std.copy_(numbers.std(0).clamp(min=1e-4))

    @property
    def _vaes(self) -> Pair[Any]:
        return Pair(self.video_vae, self.audio_vae)

    @property
    def _device(self) -> torch.device:
        return next(self.video_vae.parameters()).device


def normalise(means: Tensor, vae: Any) -> Tensor:
    """Normalise a VAE's posterior means ``[..., C]`` by its statistics per channel."""
    return (means - vae.latents_mean) / vae.latents_std


def to_pixels(frames: Tensor) -> Tensor:
    """Convert frames uint8 ``[B, T, H, W, 3]`` to pixels ``[B, 3, T, H, W]`` in [-1, 1]."""
    return (frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last_3d
    )


def to_frames(pixels: Tensor) -> Tensor:
    """Convert pixels ``[B, 3, T, H, W]`` in [-1, 1] to frames uint8 ``[B, T, H, W, 3]``."""
    scaled = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def _refuse_other_than_whole_seconds(frames: int, samples: int) -> None:
    seconds = clip_seconds(Counts(1 - (1 - frames) // 8, 1 - -samples // 640))
    if (frames, samples) != (clip_frames(seconds), clip_samples(seconds)):
        raise LayoutError(
            "layout.partial-second",
            f"{frames} frames and {samples} samples are no whole seconds: "
            f"{seconds} s are {clip_frames(seconds)} frames and {clip_samples(seconds)} samples",
        )
