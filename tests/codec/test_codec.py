"""The codec is diffusers' models and bookkeeping: counts, packing, statistics, files, and no look
into the future.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from omniforcing.codec.codec import Codec
from omniforcing.codec.config import AudioCodecConfig, CodecConfig, VideoCodecConfig, VocoderConfig
from omniforcing.codec.networks import build_audio_vae, build_video_vae, build_vocoder, load_parts
from omniforcing.core.layout import clip_frames, clip_samples
from omniforcing.core.pair import Pair
from omniforcing.media.mel import log_mel
from tests.support.refusals import refuses

VIDEO = VideoCodecConfig(
    latent_channels=8, encoder_channels=[16, 32, 64], decoder_channels=[16, 32, 64]
)
AUDIO = AudioCodecConfig(channel_multipliers=[1, 1, 2])
CONFIG = CodecConfig(video=VIDEO, audio=AUDIO, vocoder=VocoderConfig(hidden=32))


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    codec = Codec.from_config(CONFIG, 64, 96)
    codec.normalise_by(Pair(1 + 2 * torch.randn(2, 3, 4, 8), 3 * torch.randn(2, 3, 16) - 1))
    return codec


def media(seconds: int, batch: int = 1, seed: int = 0) -> Pair[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(
        256, (batch, clip_frames(seconds), 64, 96, 3), dtype=torch.uint8, generator=generator
    )
    return Pair(frames, 0.1 * torch.randn(batch, 2, clip_samples(seconds), generator=generator))


@pytest.mark.parametrize("seconds", [1, 2])
def test_k_seconds_are_1_plus_3k_and_1_plus_25k_latents(codec: Codec, seconds: int) -> None:
    latents = codec.encode(media(seconds, batch=2))
    assert latents.video.shape == (2, 1 + 3 * seconds, 4 * 6, 8)
    assert latents.audio.shape == (2, 1 + 25 * seconds, 16)
    decoded = codec.decode(latents)
    assert (
        decoded.video.shape == (2, 1 + 24 * seconds, 64, 96, 3)
        and decoded.video.dtype == torch.uint8
    )
    assert decoded.audio.shape == (2, 2, 16000 * seconds)


@pytest.mark.parametrize(
    ("frames", "samples", "code"),
    [
        (24, 16000, "layout.partial-second"),
        (25, 15840, "layout.partial-second"),
        (26, 16000, "layout.partial-second"),
        (49, 16000, "layout.unequal-lengths"),
        (25, 16001, "layout.partial-second"),
        (1, 0, "layout.partial-second"),
    ],
)
def test_other_counts_are_refused(codec: Codec, frames: int, samples: int, code: str) -> None:
    found = media(2)
    with refuses(code):
        codec.encode(Pair(found.video[:, :frames], found.audio[..., :samples]))


def test_latents_of_other_counts_or_grids_are_refused(codec: Codec) -> None:
    latents = codec.encode(media(1))
    with refuses("layout.unequal-lengths", "51 audio latents"):
        codec.decode(Pair(latents.video, torch.zeros(1, 51, 16)))
    with refuses("codec.wrong-grid", "4x4", "16"):
        codec.decode(latents, grid=(4, 4))


def test_encoding_is_diffusers_posterior_mean_normalised(codec: Codec) -> None:
    found = media(1)
    vae = codec.video_vae
    pixels = found.video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        video = vae.encode(pixels).latent_dist.mean
        audio = codec.audio_vae.encode(log_mel(found.audio)).latent_dist.mean
    video = (video - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)
    packed = audio.permute(0, 2, 1, 3).reshape(1, 26, 16)
    packed = (packed - codec.audio_vae.latents_mean) / codec.audio_vae.latents_std
    latents = codec.encode(found)
    assert torch.allclose(
        latents.video[0, 2, 7], video[0, :, 2, 1, 1], atol=1e-5
    )  # token 7 of a 4x6 grid
    assert torch.allclose(latents.audio, packed, atol=1e-5)


def test_decoding_is_diffusers_decoding_of_denormalised_latents(codec: Codec) -> None:
    latents = codec.encode(media(1))
    z = latents.video * codec.video_vae.latents_std + codec.video_vae.latents_mean
    with torch.no_grad():
        pixels = codec.video_vae.decode(z.reshape(1, 4, 4, 6, 8).permute(0, 4, 1, 2, 3)).sample
        a = latents.audio * codec.audio_vae.latents_std + codec.audio_vae.latents_mean
        mel = codec.audio_vae.decode(a.reshape(1, 26, 1, 16).permute(0, 2, 1, 3)).sample
        samples = codec.vocoder(mel)
    decoded = codec.decode(latents)
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 4, 1)
    assert (decoded.video.float() - expected).abs().max() <= 0.51
    assert torch.allclose(decoded.audio, samples[..., :16000], atol=1e-5)


def test_encoders_do_not_see_the_future(codec: Codec) -> None:
    one, other = media(2), media(2, seed=1)
    frames = torch.cat([one.video[:, :25], other.video[:, 25:]], 1)
    first, second = (codec.encode(Pair(video, one.audio)).video for video in (one.video, frames))
    assert torch.equal(first[:, :4], second[:, :4]) and not torch.allclose(
        first[:, 4:], second[:, 4:]
    )
    samples = torch.cat([one.audio[..., :16000], other.audio[..., 16000:]], -1)
    first, second = (codec.encode(Pair(one.video, audio)).audio for audio in (one.audio, samples))
    # The window of a mel frame reaches 32 ms ahead, so the last latent of the first second may hear
    # the second one.
    assert torch.allclose(first[:, :25], second[:, :25], atol=1e-5) and not torch.allclose(
        first[:, 26:], second[:, 26:]
    )


def test_decoders_do_not_see_the_future(codec: Codec) -> None:
    latents = codec.encode(media(2))
    changed = latents.map(torch.clone)
    changed.video[:, 4:] += 1
    changed.audio[:, 26:] += 1
    one, other = codec.decode(latents), codec.decode(changed)
    assert torch.equal(one.video[:, :25], other.video[:, :25]) and not torch.equal(
        one.video[:, 25:], other.video[:, 25:]
    )
    reach = codec.describe()["vocoder_look_ahead_mel"]
    known = 160 * (101 - reach)
    assert torch.allclose(one.audio[..., :known], other.audio[..., :known], atol=1e-6)
    assert not torch.allclose(one.audio, other.audio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_codec_loads_in_float32_and_gives_the_same(
    codec: Codec, dtype: torch.dtype, tmp_path: Path
) -> None:
    codec.save(tmp_path, dtype)
    loaded = Codec.load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and not loaded.training
    assert next(codec.parameters()).dtype == torch.float32
    one, other = codec.encode(media(1)), loaded.encode(media(1))
    assert torch.allclose(one.video, other.video, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert json.loads((tmp_path / "codec.json").read_text())["grid"] == [4, 6]


def test_folders_that_hold_something_else_are_refused_in_a_sentence(
    codec: Codec, tmp_path: Path
) -> None:
    with refuses("file.missing", "codec.json"):
        Codec.load(tmp_path)
    codec.save(tmp_path)
    config = tmp_path / "vocoder" / "config.json"
    config.write_text('{"_class_name": "LTX2VocoderWithBWE"}')
    with refuses("codec.wrong-weights", "vocoder", "LTX2VocoderWithBWE"):
        load_parts(tmp_path)
    config.write_text('{"_class_name": "AutoencoderOobleck"}')
    with refuses("codec.wrong-class", "vocoder", "AutoencoderOobleck", "LTX2VocoderWithBWE"):
        load_parts(tmp_path)
    (tmp_path / "video_vae" / "diffusion_pytorch_model.safetensors").unlink()
    with refuses("file.unreadable", "video_vae", "AutoencoderKLLTX2Video"):
        load_parts(tmp_path)


def test_ltx2s_own_folder_names_are_understood(codec: Codec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    (tmp_path / "video_vae").rename(tmp_path / "vae")
    assert type(load_parts(tmp_path)[0]).__name__ == "AutoencoderKLLTX2Video"


def test_sizes_that_cannot_work_are_refused() -> None:
    with refuses("codec.wrong-picture-size", "72"):
        Codec.from_config(CONFIG, 64, 72)
    fitting = build_vocoder(VocoderConfig(hidden=16))
    faster = type(fitting).from_config({**fitting.config, "upsample_factors": [2, 1, 1, 120]})
    with refuses("codec.wrong-sample-rate", "24000", "16000"):
        Codec(build_video_vae(VIDEO), build_audio_vae(AUDIO), faster, 64, 64)


def test_a_report_leaves_out_what_silent_or_single_clips_do_not_allow() -> None:
    from omniforcing.evaluation.reconstruction import measure_reconstruction

    still = Pair(torch.zeros(2, 25, 32, 32, 3, dtype=torch.uint8), torch.zeros(2, 2, 16000))
    figures = measure_reconstruction(still, still)
    assert figures["psnr_db"] == 100.0
    assert figures["log_mel_l1"] == 0.0
    assert not {"foreground_psnr_db", "centroid_px_median", "pitch_accuracy"} & figures.keys()
    one = still.map(lambda x: x[:1])
    assert "sync_f1" not in measure_reconstruction(one, one)
