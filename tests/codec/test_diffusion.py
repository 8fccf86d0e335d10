"""LTX-2.5's diffusion decoder: against diffusers', and streamed against whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniforcing.codec.codec import Codec
from omniforcing.codec.config import AudioCodecConfig, CodecConfig, VideoCodecConfig, VocoderConfig
from omniforcing.codec.diffusion import (
    StreamingDiffusionDecoder,
    decode_with_noise,
    frame_noise,
)
from omniforcing.codec.reach import Reach
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.core.pair import Pair
from omniforcing.networks.diffusion_decoder import LTX2VideoDiffusionDecoderModel
from tests.support.refusals import refuses
from tests.support.tiny_decoder import LARGE, LONG, WIDE, tiny_decoder

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def long() -> LTX2VideoDiffusionDecoderModel:
    return tiny_decoder(LONG)


@pytest.fixture
def codec() -> Codec:
    video = VideoCodecConfig(
        latent_channels=4,
        encoder_channels=[4, 4, 8],
        encoder_layers=[0] * 4,
        decoder_channels=[4, 4, 8],
        decoder_layers=[0] * 4,
    )
    torch.manual_seed(0)
    audio = AudioCodecConfig(channel_multipliers=[1, 1, 1])
    config = CodecConfig(video=video, audio=audio, vocoder=VocoderConfig(16))
    return Codec.from_config(config, 64, 64)


def pieces(z: Tensor, size: int) -> Iterator[Tensor]:
    yield z[:, :, :1]
    yield from z[:, :, 1:].split(size, 2)


def streamed(made: Any, z: Tensor, reach: Reach, size: int = 3, seed: int = 5) -> Tensor:
    stream = StreamingDiffusionDecoder(made, reach, seed)
    return torch.cat([*(stream.push(piece) for piece in pieces(z, size)), stream.flush()], 2)


def test_it_decodes_as_diffusers_does() -> None:
    from diffusers import LTX2VideoDiffusionDecoderModel as Theirs

    ours = tiny_decoder(WIDE)
    theirs = Theirs(**WIDE).eval()
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(2, 8, 3, 2, 5, generator=torch.Generator().manual_seed(1)) + 0.5
    noise = torch.randn(2, 3, 17, 16, 40, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = theirs.decode(z, generator=torch.Generator().manual_seed(2), return_dict=False)[0]
        assert (ours.decode(z, noise).sample - whole).abs().max() < 1e-5


@pytest.mark.parametrize("size", [1, 3])
def test_a_stream_with_all_that_it_reaches_is_the_whole(
    size: int, long: LTX2VideoDiffusionDecoderModel
) -> None:
    z = torch.randn(1, 8, 10, 1, 1, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = decode_with_noise(long, z, 5, 0)
        assert whole.shape == (1, 3, 73, 32, 32)
        assert (streamed(long, z, Reach(6, 7), size) - whole).abs().max() < 2e-5


def test_a_stream_with_less_than_it_reaches_misses_little(
    long: LTX2VideoDiffusionDecoderModel,
) -> None:
    z = torch.randn(1, 8, 10, 1, 1, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = decode_with_noise(long, z, 5, 0)
        far, near = (
            float((streamed(long, z, reach) - whole).square().mean().sqrt() / whole.std())
            for reach in (Reach(4, 6), Reach(2, 1))
        )
    assert far < 0.01 < near


def test_noise_of_a_frame_follows_from_seed_and_number(
    long: LTX2VideoDiffusionDecoderModel,
) -> None:
    assert torch.equal(frame_noise(7, 3, 2, 4, 4), frame_noise(7, 0, 9, 4, 4)[:, :, 3:5])
    assert not torch.equal(frame_noise(7, 3, 1, 4, 4), frame_noise(8, 3, 1, 4, 4))
    z = torch.randn(1, 8, 4, 1, 1)
    with torch.inference_mode():
        one, other = (decode_with_noise(long, z, seed, 0) for seed in (1, 2))
    assert (one - other).abs().max() > 0.01


def test_a_saved_stream_goes_on_with_the_same_pixels(long: LTX2VideoDiffusionDecoderModel) -> None:
    z = torch.randn(1, 8, 10, 1, 1, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        one = StreamingDiffusionDecoder(long, Reach(2, 3), 5)
        one.push(z[:, :, :7])
        other = StreamingDiffusionDecoder(long, Reach(2, 3), 5)
        other.restore(one.state())
        for stream in (one, other):
            stream.push(z[:, :, 7:])
        assert torch.equal(one.flush(), other.flush())
    held = one.state()["held"]
    assert held.shape[2] == 3  # memory does not grow


def test_a_codec_decodes_and_streams_by_diffusion_and_keeps_it(
    codec: Codec, tmp_path: Path
) -> None:
    channels = codec.video_channels
    network = tiny_decoder({**LARGE, "latent_channels": channels})
    made = Codec(codec.video_vae, codec.audio_vae, codec.vocoder, 64, 64, diffusion=network)
    made.save(tmp_path)
    loaded = Codec.load(tmp_path)
    latents = Pair(torch.randn(1, 7, 16, channels), torch.randn(1, 51, made.audio_channels))
    whole = loaded.decode(latents, seed=3)
    before = made.decode(latents, seed=3).video
    assert (whole.video.int() - before.int()).abs().max() <= 1  # memory layouts round differently
    assert not torch.equal(whole.video, made.decode(latents, seed=4).video)
    decoder = StreamingDecoder(loaded, (4, 4), seed=3)
    first = decoder.push(latents)
    found = torch.cat([first.video, decoder.flush().video], 1)
    assert first.video.shape[1] == 1 + 8 * 2 and found.shape == (1, 49, 64, 64, 3)
    difference = (found.int() - whole.video.int()).abs()
    assert difference.float().mean() < 2
    assert loaded.describe()["video_decoder"] == "diffusion"
    assert not loaded.describe()["video_decoder_causal"]


def test_what_a_diffusion_decoder_cannot_do_is_refused(
    codec: Codec, long: LTX2VideoDiffusionDecoderModel
) -> None:
    with refuses("codec.too-few-latents", "3 latents", "has 2"):
        decode_with_noise(long, torch.zeros(1, 8, 2, 1, 1), 0, 0)
    for reach in (Reach(1, 6), Reach(4, 0), Reach(4, 6, 8)):
        with refuses("codec.impossible-reach", str(reach)):
            StreamingDiffusionDecoder(long, reach, 0)
    parts = codec.video_vae, codec.audio_vae, codec.vocoder, 64, 64
    with refuses("codec.mixed-decoders", "8"):
        Codec(*parts, diffusion=long)
    kernels = ((3, 7, 7), *LARGE["decoder_stage_kernels"][1:])
    fitting = {**LARGE, "latent_channels": codec.video_channels}
    large = tiny_decoder({**fitting, "decoder_stage_kernels": kernels})
    with refuses("codec.picture-too-small", "112x112", "64x64"):
        Codec(*parts, diffusion=large)
