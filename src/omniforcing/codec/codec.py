"""The codec: LTX-2's own video VAE, audio VAE and vocoder classes in whatever sizes their configs say.

Latents are normalised per channel by the statistics in the VAEs' ``latents_mean`` and ``latents_std`` buffers. A codec is a
folder: ``video_vae/``, ``audio_vae/`` and ``vocoder/`` as diffusers saves them, ``text/`` beside them, and ``codec.json``.
"""

from __future__ import annotations

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.codec.config import AudioCodecConfig, CodecConfig, VideoCodecConfig, VocoderConfig
from omniforcing.codec.reach import Reach, described_reach, video_reach, vocoder_reach
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, write_json
from omniforcing.core.latents import Latents, Media, Pair
from omniforcing.core.layout import (
    MEL_RATE,
    SAMPLE_RATE,
    Counts,
    LayoutError,
    clip_frames,
    clip_samples,
    clip_seconds,
)

DESCRIPTION = "codec.json"
SCHEMA = 1
# The pocket codec's cells: patches of 8 pixels, halved in space once and in time three times, so
# 16x16 pixels and 8 frames, as many frames as LTX-2's latents have.
PATCH_SIZE = 8
LEVELS = ("temporal", "temporal", "spatiotemporal")
AUDIO_LATENT_CHANNELS = 1
MEL_BINS = 64  # as LTX-2's audio VAE has them


class CodecError(OmniForcingError):
    """A codec folder, a picture size or latents that do not fit; says what was expected."""


def build_video_vae(config: VideoCodecConfig) -> Any:
    """A fresh, causal ``AutoencoderKLLTX2Video`` of the configured sizes."""
    from diffusers import AutoencoderKLLTX2Video

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
    """A fresh, causal ``AutoencoderKLLTX2Audio`` of the configured sizes."""
    from diffusers import AutoencoderKLLTX2Audio

    return AutoencoderKLLTX2Audio(
        # The model sizes its statistics by its base channels; they must fit a token.
        base_channels=AUDIO_LATENT_CHANNELS * MEL_BINS // 4,
        ch_mult=tuple(config.channel_multipliers),
        num_res_blocks=1,
        latent_channels=AUDIO_LATENT_CHANNELS,
        mel_bins=MEL_BINS,
        norm_type="pixel",
        causality_axis="height",
    )


def build_vocoder(config: VocoderConfig) -> Any:
    """A fresh ``LTX2Vocoder`` of the configured width, from stereo log-mel to stereo of 16 kHz."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    return LTX2Vocoder(
        in_channels=2 * MEL_BINS,
        hidden_channels=config.hidden,
        upsample_kernel_sizes=[8, 3, 3, 320],
        # Their product, 160, is the samples of a mel frame; the last makes the waveform at once.
        upsample_factors=[2, 1, 1, 80],
        resnet_kernel_sizes=[5],
        resnet_dilations=[[1, 3]],
        output_sampling_rate=SAMPLE_RATE,
    )


class Codec(nn.Module):
    """Media to normalised latents and back: frames uint8 ``[B, 1+24K, H, W, 3]``, samples float32 ``[B, 2, N]``."""

    def __init__(
        self,
        video_vae: Any,
        audio_vae: Any,
        vocoder: Any,
        height: int,
        width: int,
        reach: Reach | None = None,
    ) -> None:
        """``height`` and ``width`` are the pixels of the clips that the codec was trained or is used for.

        ``reach`` is how a non-causal video decoder is to be streamed; None: as ``codec/reach.py`` says.

        Raises:
            CodecError: if the picture does not divide into tokens, or the vocoder makes sound of another rate than it says.
        """
        super().__init__()
        self.video_reach = reach or video_reach(video_vae.config)
        self.video_vae, self.audio_vae, self.vocoder = video_vae, audio_vae, vocoder
        self.height, self.width = height, width
        self.token_grid(height, width)
        if (made := MEL_RATE * prod(vocoder.config.upsample_factors)) != self.sample_rate:
            raise CodecError(
                "codec.wrong-sample-rate",
                f"the vocoder's upsample_factors make {made} samples a second, but its output_sampling_rate is "
                f"{self.sample_rate}; one of them is wrong",
            )
        self.requires_grad_(False).eval()
        # Plain layout makes small 3-D convolutions several times slower on a CPU.
        self.video_vae.to(memory_format=torch.channels_last_3d)

    @classmethod
    def from_config(cls, config: CodecConfig, height: int, width: int) -> Codec:
        """A codec with fresh weights."""
        vocoder = build_vocoder(config.vocoder)
        return cls(
            build_video_vae(config.video), build_audio_vae(config.audio), vocoder, height, width
        )

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Codec:
        """Read a codec folder; weights of any precision become float32.

        Raises:
            CodecError: if a part is missing, unreadable or of another class.
        """
        description = read_json(folder / DESCRIPTION)
        if description.get("schema") != SCHEMA:
            raise CodecError(
                "file.unknown-schema",
                f"{folder / DESCRIPTION} has schema {description.get('schema')}; this version reads {SCHEMA}",
            )
        reach = described_reach(description)
        return cls(*load_parts(folder), description["height"], description["width"], reach).to(
            device
        )

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the codec into ``folder``; ``dtype`` is that of the stored weights. This object keeps its own."""
        for name, part in (
            ("video_vae", self.video_vae),
            ("audio_vae", self.audio_vae),
            ("vocoder", self.vocoder),
        ):
            copy = type(part).from_config(part.config)
            nn.Module.to(
                copy, dtype
            )  # diffusers' own method warns about modules that are not there
            copy.load_state_dict(part.state_dict())
            copy.save_pretrained(folder / name)
        write_json(folder / DESCRIPTION, self.describe())

    def describe(self) -> dict[str, Any]:
        """What ``codec.json`` holds: sizes, and how much the decoders must hear of the future."""
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
            "video_decoder_causal": bool(self.video_vae.config.decoder_causal),
            "video_reach": asdict(self.video_reach),
            "vocoder_look_ahead_mel": vocoder_reach(self.vocoder.config),
        }

    # --- sizes ------------------------------------------------------------------------------------------------------------

    @property
    def video_channels(self) -> int:
        return int(self.video_vae.config.latent_channels)

    @property
    def audio_channels(self) -> int:
        config = self.audio_vae.config
        return int(config.latent_channels * config.mel_bins // self.audio_vae.mel_compression_ratio)

    @property
    def sample_rate(self) -> int:
        """Of the decoded sound, in Hz."""
        return int(self.vocoder.config.output_sampling_rate)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """The grid of tokens (rows, columns) of a picture.

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
        """Tokens per video latent, channels of a video token, numbers of an audio token."""
        rows, columns = self.token_grid(height, width)
        return rows * columns, self.video_channels, self.audio_channels

    # --- media to latents ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, media: Media) -> Latents:
        """Normalised posterior means: video ``[B, 1+3K, S, Cv]``, audio ``[B, 1+25K, Ca]``.

        Raises:
            LayoutError: if the frames and samples are not those of the same K whole seconds.
        """
        _refuse_other_than_whole_seconds(media.video.shape[1], media.audio.shape[2])
        raw = Pair(self.video_means(media.video), self.audio_means(media.audio))
        return raw.map(normalise, self._vaes)

    def video_means(self, frames: Tensor) -> Tensor:
        """Posterior means, not normalised, ``[B, Tv, S, Cv]`` of frames uint8 ``[B, T, H, W, 3]``."""
        means = self.video_vae.encode(to_pixels(frames.to(self._device))).latent_dist.mode()
        return means.flatten(3).permute(0, 2, 3, 1)

    def audio_means(self, samples: Tensor) -> Tensor:
        """Posterior means, not normalised, ``[B, Ta, Ca]`` of samples ``[B, 2, N]``; channel-major as LTX-2 packs them."""
        from omniforcing.media.mel import log_mel

        means = self.audio_vae.encode(log_mel(samples.to(self._device))).latent_dist.mode()
        return means.transpose(1, 2).flatten(2)

    # --- latents to media ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, latents: Latents, grid: tuple[int, int] | None = None) -> Media:
        """Frames uint8 ``[B, 1+24K, H, W, 3]`` and samples float32 ``[B, 2, K * sample_rate]`` of normalised latents.

        Args:
            grid: rows and columns of tokens; that of the codec's own picture size if not given.

        Raises:
            LayoutError: if the counts are not those of the same K whole seconds.
            CodecError: if the tokens do not fill the grid.
        """
        seconds = clip_seconds(Counts(latents.video.shape[1], latents.audio.shape[1]))
        z = self.denormalise(latents, grid)
        samples = self.vocoder(self.audio_vae.decode(z.audio).sample)
        # Mel frame m gives the samples from 160 m on, so the last frame's lie past the end of the clip.
        return Pair(
            to_frames(self.video_vae.decode(z.video).sample),
            samples[..., : seconds * self.sample_rate],
        )

    @torch.no_grad()
    def decode_frames(self, z: Tensor) -> Tensor:
        """Frames uint8 ``[N, T, H, W, 3]`` on the CPU of what the video decoder takes, ``[N, C, t, h, w]``, clip by clip."""
        return torch.cat(
            [
                to_frames(self.video_vae.decode(one.to(self._device)).sample).cpu()
                for one in z.split(1)
            ]
        )

    def denormalise(self, latents: Latents, grid: tuple[int, int] | None = None) -> Latents:
        """The decoders' own inputs in their own precision: video ``[B, Cv, Tv, H, W]``, audio ``[B, c, Ta, f]``.

        Raises:
            CodecError: if the tokens do not fill the grid.
        """
        rows, columns = grid or self.token_grid(self.height, self.width)
        if latents.video.shape[2] != rows * columns:
            raise CodecError(
                "codec.wrong-grid",
                f"video latents have {latents.video.shape[2]} tokens, a grid of {rows}x{columns} has {rows * columns}; "
                "give the grid of the picture they were encoded from",
            )
        raw = latents.map(
            lambda z, vae: (z * vae.latents_std + vae.latents_mean).to(vae.dtype), self._vaes
        )
        video = raw.video.permute(0, 3, 1, 2).unflatten(3, (rows, columns))
        audio = raw.audio.unflatten(2, (self.audio_vae.config.latent_channels, -1)).transpose(1, 2)
        return Pair(video.contiguous(memory_format=torch.channels_last_3d), audio)

    # --- the rest --------------------------------------------------------------------------------------------------------

    def normalise_by(self, means: Latents) -> None:
        """Normalise from now on by the mean and deviation per channel of ``means``, unnormalised latents ``[N, T, ..., C]``."""
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
    """Normalised latents of a VAE's posterior means ``[..., C]``."""
    return (means - vae.latents_mean) / vae.latents_std


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 ``[B, T, H, W, 3]`` to ``[B, 3, T, H, W]`` in [-1, 1]."""
    return (frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last_3d
    )


def to_frames(pixels: Tensor) -> Tensor:
    """``[B, 3, T, H, W]`` in [-1, 1] to uint8 ``[B, T, H, W, 3]``."""
    return (
        ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    )


def load_parts(folder: Path) -> tuple[Any, Any, Any]:
    """Video VAE, audio VAE and vocoder of a codec folder or of LTX-2's (``vae/`` there), in float32.

    Raises:
        CodecError: if a part is missing, incomplete, unreadable or of another class.
    """
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    return (
        _load_part(AutoencoderKLLTX2Video, folder / video_folder(folder)),
        _load_part(AutoencoderKLLTX2Audio, folder / "audio_vae"),
        _load_part(LTX2Vocoder, folder / "vocoder"),
    )


def video_folder(folder: Path) -> str:
    """How a codec folder calls its video VAE: as we do, or as LTX-2 does."""
    return "video_vae" if (folder / "video_vae").is_dir() else "vae"


def _load_part(kind: Any, folder: Path) -> Any:
    found = read_json(folder / "config.json").get("_class_name")
    if found != kind.__name__:
        raise CodecError(
            "codec.wrong-class", f"{folder} holds a {found}; a {kind.__name__} is needed there"
        )
    try:
        return kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CodecError(
            "file.unreadable",
            f"{folder} is not a readable {kind.__name__}: {str(error).splitlines()[0]}",
        ) from error


def _refuse_other_than_whole_seconds(frames: int, samples: int) -> None:
    seconds = clip_seconds(Counts(1 - (1 - frames) // 8, 1 - -samples // 640))
    if (frames, samples) != (clip_frames(seconds), clip_samples(seconds)):
        raise LayoutError(
            "layout.partial-second",
            f"{frames} frames and {samples} samples are no whole seconds: "
            f"{seconds} s are {clip_frames(seconds)} frames and {clip_samples(seconds)} samples",
        )
