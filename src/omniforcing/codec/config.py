"""Sections of the codec: video VAE, audio VAE, vocoder and text encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omniforcing.core.config import Section, ranged

DIFFUSION_DECODER = "diffusion_decoder"  # its folder, of a codec or of LTX-2.5's own


class Source(Enum):
    """Where codec or teacher come from."""

    kept = "kept"
    train = "train"
    load = "load"


class VideoDecoder(Enum):
    """Which network makes the pictures."""

    convolutional = "convolutional"
    diffusion = "diffusion"


@dataclass
class CropConfig(Section):
    """One leg of the video VAE's training."""

    one_line = True

    frames: int = ranged(17, at_least=1)
    """Length of a crop."""
    batch: int = ranged(6, at_least=1)
    """Crops per step."""
    share: float = ranged(1.0, above=0, at_most=1)
    """Share of the steps."""


@dataclass
class VideoCodecConfig(Section):
    """Sizes and training of the video VAE."""

    latent_channels: int = ranged(16, at_least=1)
    """Channels of a video latent."""
    encoder_channels: list[int] = ranged([32, 64, 512], at_least=1)
    """Widths of the encoder's three levels."""
    encoder_layers: list[int] = ranged([1, 1, 2, 0], at_least=0)
    """Residual blocks of the encoder's levels and of its middle."""
    decoder_channels: list[int] = ranged([48, 96, 192], at_least=1)
    """Widths of the decoder's three levels."""
    decoder_layers: list[int] = ranged([1, 1, 1, 0], at_least=0)
    """Residual blocks of the decoder's levels and of its middle."""
    steps: int = ranged(9000, at_least=1)
    """Updates."""
    crops: list[CropConfig] = field(
        default_factory=lambda: [
            CropConfig(1, 32, 0.05),
            CropConfig(9, 8, 0.25),
            CropConfig(17, 6, 0.5),
            CropConfig(33, 4, 0.2),
        ]
    )
    """Legs of the training: length, batch and share of the steps."""
    lr: float = ranged(1.0e-3, above=0, at_most=1)
    """Peak learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.crops) > 0, "crops", "at least one leg is needed")
        shares = sum(crop.share for crop in self.crops)
        # Of a sum above 1 the last legs would never be trained, and below 1 the last one longer.
        self.require(
            abs(shares - 1) < 1e-6, "crops", f"their shares must add up to 1, not to {shares:g}"
        )
        for name in ("encoder", "decoder"):
            widths = getattr(self, f"{name}_channels")
            self.require(
                len(widths) == 3, f"{name}_channels", "it must be three widths, one per level"
            )
            layers = getattr(self, f"{name}_layers")
            self.require(
                len(layers) == 4, f"{name}_layers", "it must be four numbers, the last the middle's"
            )


@dataclass
class AudioCodecConfig(Section):
    """Sizes and training of the audio VAE."""

    channel_multipliers: list[int] = ranged([1, 2, 4], at_least=1)
    """Widths of the levels, in base channels."""
    steps: int = ranged(1500, at_least=1)
    """Updates."""
    batch: int = ranged(8, at_least=1)
    """Crops per update, each of one second."""
    lr: float = ranged(2.0e-3, above=0, at_most=1)
    """Peak learning rate."""


@dataclass
class VocoderConfig(Section):
    """Sizes and training of the vocoder."""

    hidden: int = ranged(256, at_least=16)
    """Channels before the first upsampler; each of the four halves them."""
    steps: int = ranged(1500, at_least=1)
    """Updates."""
    batch: int = ranged(4, at_least=1)
    """Crops per update."""
    mel_frames: int = ranged(100, at_least=1)
    """Length of a crop, frames of 10 ms."""
    lr: float = ranged(2.0e-3, above=0, at_most=1)
    """Peak learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.hidden % 16 == 0, "hidden", "it is halved four times: a multiple of 16")


@dataclass
class TextConfig(Section):
    """Sizes of the tiny frozen Gemma and its connectors."""

    layers: int = ranged(2, at_least=1)
    """Layers of the text model."""
    hidden: int = ranged(64, at_least=1)
    """Its width, and that of the text features."""
    heads: int = ranged(4, at_least=1)
    """Attention heads."""
    length: int = ranged(32, at_least=1)
    """Tokens per caption."""
    registers: int = ranged(16, at_least=1)
    """Learnable registers of the connectors, which fill the padding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.hidden % self.heads == 0, "hidden", f"it must be a multiple of {self.heads} heads"
        )


@dataclass
class CodecConfig(Section):
    """Stage codec: video VAE, audio VAE, vocoder and text encoder."""

    source: Source = Source.train
    """`train`, `kept` (the foundation in src/omniforcing/assets) or `load`."""
    path: str | None = None
    """For `source: load`: a folder in diffusers format."""
    video_decoder: VideoDecoder = VideoDecoder.convolutional
    """`convolutional`, or `diffusion` with LTX-2.5's (`source: load`), sharper and slower."""
    video: VideoCodecConfig = field(default_factory=VideoCodecConfig)
    """Video VAE."""
    audio: AudioCodecConfig = field(default_factory=AudioCodecConfig)
    """Audio VAE."""
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    """Vocoder: log-mel spectrograms to sound."""
    text: TextConfig = field(default_factory=TextConfig)
    """Tiny frozen Gemma and its connectors."""
    report_clips: int = ranged(32, at_least=1)
    """Held-out clips on which reconstructions are measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.source is not Source.load or self.path is not None,
            "path",
            "source=load needs the folder of a saved codec",
            missing=True,
        )
        self.require(
            self.source is Source.load or self.video_decoder is VideoDecoder.convolutional,
            "video_decoder",
            "only a loaded codec (source=load) can have a diffusion decoder",
        )
