"""A whole artifact of tiny random parts: the real student, codec and text encoder, 64x64."""

from __future__ import annotations

from pathlib import Path

import torch

from omniforcing.codec.codec import Codec
from omniforcing.codec.config import (
    AudioCodecConfig,
    CodecConfig,
    TextConfig,
    VideoCodecConfig,
    VocoderConfig,
)
from omniforcing.codec.text import build_tiny
from omniforcing.model.student import build_core
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import save_model
from omniforcing.streaming.artifact import StreamSettings

GRID = (4, 4)
METRICS = {
    "models": {
        "self_forcing": {"sync_f1": 0.5, "sync_margin": 0.25},
        "shuffled": {"sync_f1": 0.25, "note": "chance"},
    },
    "speed": {"ttfc_s": 0.125},
}


def transformer_config(codec: Codec, text: TextConfig) -> dict[str, object]:
    """LTX-2.0's architecture in its smallest form."""
    return {
        "in_channels": codec.video_channels,
        "out_channels": codec.video_channels,
        "audio_in_channels": codec.audio_channels,
        "audio_out_channels": codec.audio_channels,
        "num_attention_heads": 2,
        "audio_num_attention_heads": 2,
        "attention_head_dim": 16,
        "audio_attention_head_dim": 8,
        "cross_attention_dim": 32,
        "audio_cross_attention_dim": 16,
        "num_layers": 1,
        "caption_channels": text.hidden,
        "vae_scale_factors": (8, 16, 16),
        "rope_type": "split",
        "timestep_scale_multiplier": 1000,
        "cross_attn_timestep_scale_multiplier": 1000,
    }


def make_settings(**changes: object) -> StreamSettings:
    """Settings of a stream of the tiny artifact."""
    values = {
        "preset": "smoke",
        "layout": "prefix",
        "height": 64,
        "width": 64,
        "grid": list(GRID),
        "window": 2,
        "horizon": 4,
        "sigmas": [1.0, 0.5],
        "context_noise": 0.0,
        "sinks": 3,
        "stabiliser": "sinks",
        "look_ahead": 25,
        "sample_rate": 16000,
    }
    return StreamSettings(**{**values, **changes})  # type: ignore[arg-type]


TEXT = TextConfig(layers=1, hidden=32, heads=2, length=32, registers=8)


def write_student(student: Path, codec: Codec, seed: int) -> None:
    """Write the student of a codec into its folder, as its stage does."""
    core = build_core(transformer_config(codec, TEXT), seed=seed)
    save_model(DualStream(core, sinks=3), student)


def write_parts(student: Path, codec_folder: Path) -> None:
    """Write a student and a codec into their folders, as their stages do."""
    video = VideoCodecConfig(
        latent_channels=8, encoder_channels=[8, 16, 32], decoder_channels=[8, 16, 32]
    )
    audio, vocoder = AudioCodecConfig(channel_multipliers=[1, 1, 2]), VocoderConfig(hidden=16)
    torch.manual_seed(0)
    codec = Codec.from_config(CodecConfig(video=video, audio=audio, vocoder=vocoder), 64, 64)
    codec.save(codec_folder)
    build_tiny(codec_folder / "text", TEXT, ["a red ball bounces", "a blue ball rolls"], seed=0)
    write_student(student, codec, seed=0)
