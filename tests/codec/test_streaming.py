"""Streamed decoding equals whole decoding for any split; streams over one codec stay apart."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from omniforcing.codec.codec import Codec
from omniforcing.codec.config import AudioCodecConfig, CodecConfig, VideoCodecConfig, VocoderConfig
from omniforcing.codec.networks import build_video_vae
from omniforcing.codec.reach import Reach, network_reach
from omniforcing.codec.streaming import (
    StreamingDecoder,
    StreamingMelDecoder,
    StreamingVideoDecoder,
)
from omniforcing.codec.vocoder import StreamingVocoder
from omniforcing.core.latents import Latents
from omniforcing.core.layout import LAYOUTS, SAMPLE_RATE, clip_latents
from omniforcing.core.pair import Pair
from omniforcing.training.codec.causal import with_decoder
from tests.support.memory import storages
from tests.support.refusals import refuses

SECONDS = 2
COUNTS = clip_latents(SECONDS)
VIDEO = VideoCodecConfig(
    latent_channels=8, encoder_channels=[8, 16, 32], decoder_channels=[8, 16, 32]
)
AUDIO = AudioCodecConfig(channel_multipliers=[1, 1, 2])
CONFIG = CodecConfig(video=VIDEO, audio=AUDIO, vocoder=VocoderConfig(hidden=16))


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    codec = Codec.from_config(CONFIG, 64, 64)
    # Statistics that are not 0 and 1, so that a forgotten denormalisation shows.
    codec.normalise_by(Pair(1 + 2 * torch.randn(4, 5, 3, 8), 3 * torch.randn(4, 5, 16)))
    return codec


def random_latents(codec: Codec, batch: int = 1, seed: int = 0) -> Latents:
    generator = torch.Generator().manual_seed(seed)
    tokens, video, audio = codec.latent_shape(codec.height, codec.width)
    return Pair(
        torch.randn(batch, COUNTS.video, tokens, video, generator=generator),
        torch.randn(batch, COUNTS.audio, audio, generator=generator),
    )


def split(latents: Latents, layout: str) -> list[Latents]:
    table = LAYOUTS[layout]
    return [
        Pair(latents.video[:, b.video.slice], latents.audio[:, b.audio.slice])
        for b in table.blocks(table.count_for(COUNTS))
    ]


def decode_streamed(decoder: StreamingDecoder, pieces: list[Latents]) -> Pair[Tensor]:
    media = [decoder.push(piece) for piece in pieces]
    media.append(decoder.flush())
    return Pair(torch.cat([m.video for m in media], 1), torch.cat([m.audio for m in media], 2))


def chunks_of(x: Tensor, size: int, dim: int) -> list[Tensor]:
    """A first chunk of one, then chunks of ``size``."""
    return [x.narrow(dim, 0, 1), *x.narrow(dim, 1, x.shape[dim] - 1).split(size, dim)]


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("batch", [1, 2])
def test_picture_in_pieces_equals_the_whole(codec: Codec, size: int, batch: int) -> None:
    z = codec.denormalise(random_latents(codec, batch)).video
    stream = StreamingVideoDecoder(codec.video_vae)
    whole = codec.video_vae.decode(z).sample
    streamed = torch.cat([stream.push(piece) for piece in chunks_of(z, size, 2)], 2)
    assert streamed.shape == whole.shape == (batch, 3, 1 + 24 * SECONDS, 64, 64)
    assert (streamed - whole).abs().max() < 1e-4 * max(1, whole.abs().max())


@pytest.mark.extended
@torch.no_grad()
@pytest.mark.parametrize("size", [1, 8, 25, 50])
def test_mel_and_sound_in_pieces_equal_the_whole(codec: Codec, size: int) -> None:
    z = codec.denormalise(random_latents(codec, 2)).audio
    mels, sounds = StreamingMelDecoder(codec.audio_vae), StreamingVocoder(codec.vocoder)
    whole_mel = codec.audio_vae.decode(z).sample
    whole = codec.vocoder(whole_mel)[..., : SAMPLE_RATE * SECONDS]
    pieces = [mels.push(piece) for piece in chunks_of(z, size, 2)]
    streamed = torch.cat([*(sounds.push(mel) for mel in pieces), sounds.flush()], 2)
    assert (torch.cat(pieces, 2) - whole_mel).abs().max() < 1e-4
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() < 1e-4


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_media_of_every_layout_equal_the_codecs(codec: Codec, layout: str) -> None:
    latents = random_latents(codec, 2)
    whole = codec.decode(latents)
    streamed = decode_streamed(StreamingDecoder(codec, (4, 4)), split(latents, layout))
    assert streamed.video.shape == whole.video.shape
    # Equal to float error before rounding to 256 levels, hence to one level after it.
    assert (streamed.video.int() - whole.video.int()).abs().max() <= 1
    assert (streamed.audio - whole.audio).abs().max() < 1e-4


def test_decoder_with_residual_and_plain_upsamplers_reflecting_at_the_borders() -> None:
    from diffusers import AutoencoderKLLTX2Video

    torch.manual_seed(1)
    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 16, 32),
        down_block_types=("LTX2VideoDownBlock3D",) * 3,
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1, 2, 1, 1),
        spatio_temporal_scaling=(True,) * 3,
        downsample_type=("spatial", "temporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "temporal", "spatial"),
        upsample_residual=(True, False, True),
    ).eval()
    z, stream = torch.randn(1, 8, 5, 4, 4), StreamingVideoDecoder(vae)
    with torch.no_grad():
        whole = vae.decode(z).sample
        streamed = torch.cat([stream.push(piece) for piece in chunks_of(z, 2, 2)], 2)
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() < 1e-4


@pytest.fixture(scope="module")
def both_ways() -> Any:
    """A video VAE whose decoder is not causal and reaches less than 7 latents to either side."""
    torch.manual_seed(2)
    vae = with_decoder(build_video_vae(VIDEO), causal=False)
    return vae.to(memory_format=torch.channels_last_3d)


def long_latents(seed: int = 0) -> Tensor:
    z = torch.randn(1, 8, 19, 4, 4, generator=torch.Generator().manual_seed(seed))
    return z.contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def stream_picture(vae: Any, z: Tensor, reach: Reach, size: int = 3) -> Tensor:
    stream = StreamingVideoDecoder(vae, reach)
    return torch.cat([*(stream.push(piece) for piece in chunks_of(z, size, 2)), stream.flush()], 2)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("again", [0, 2, 30])
def test_decoder_that_looks_both_ways_is_exact_with_all_of_its_reach(
    both_ways: Any, again: int, size: int
) -> None:
    z = long_latents()
    whole = both_ways.decode(z).sample
    streamed = stream_picture(both_ways, z, Reach(7, again), size)
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.extended
@torch.no_grad()
def test_error_falls_with_the_look_ahead_and_with_what_is_decoded_again(both_ways: Any) -> None:
    z = long_latents()
    whole = both_ways.decode(z).sample
    errors = [
        (stream_picture(both_ways, z, Reach(ahead, 3)) - whole).square().mean()
        for ahead in (0, 1, 2, 3, 5)
    ]
    assert all(more < 0.5 * less for less, more in pairwise(errors))
    again = [
        (stream_picture(both_ways, z, Reach(2, again)) - whole).square().mean() for again in (0, 3)
    ]
    assert again[1] < again[0]


@torch.no_grad()
def test_pieces_fade_in_from_what_the_piece_before_made_of_them(both_ways: Any) -> None:
    """Frames 17 to 19 of pieces that meet before frame 17: a quarter, a half, three quarters of the
    later piece.
    """
    z = long_latents()
    old = StreamingVideoDecoder(both_ways, Reach(2))
    new = StreamingVideoDecoder(both_ways, Reach(2, blend=3))
    for stream in (old, new):
        stream.push(z[:, :, :5])
    early = both_ways.decode(z[:, :, :5]).sample[:, :, 17:20]
    late = old.push(z[:, :, 5:8])
    found = new.push(z[:, :, 5:8])
    share = torch.tensor([0.25, 0.5, 0.75])[:, None, None]
    assert torch.allclose(found[:, :, :3], early.lerp(late[:, :, :3], share), atol=1e-5)
    assert torch.allclose(found[:, :, 3:], late[:, :, 3:], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("at", [1, 4, 7])
def test_look_ahead_stream_goes_on_from_a_saved_state_bit_for_bit(both_ways: Any, at: int) -> None:
    z, reach = long_latents(), Reach(2, 3, 4)
    stream, again = StreamingVideoDecoder(both_ways, reach), StreamingVideoDecoder(both_ways, reach)
    stream.push(z[:, :, :at])
    again.restore(stream.state())
    for piece in (z[:, :, at : at + 3], z[:, :, at + 3 : at + 6]):
        assert torch.equal(stream.push(piece), again.push(piece))
    assert torch.equal(stream.flush(), again.flush())


def test_decoders_get_latents_in_their_own_precision(codec: Codec) -> None:
    """A video decoder in bf16 beside sound in fp32, as a GPU streams.

    The picture is that of fp32 to bf16's rounding.
    """
    grid = codec.token_grid(codec.height, codec.width)
    counts = clip_latents(1)
    video = torch.randn(1, counts.video, grid[0] * grid[1], codec.video_channels)
    latents = Pair(video, torch.randn(1, counts.audio, codec.audio_channels))
    half = copy.deepcopy(codec)
    half.video_vae.to(torch.bfloat16)
    assert [z.dtype for z in half.denormalise(latents, grid)] == [torch.bfloat16, torch.float32]
    ours, theirs = (StreamingDecoder(c, grid).push(latents) for c in (half, codec))
    assert torch.equal(ours.audio, theirs.audio)
    assert (ours.video.float() - theirs.video.float()).abs().mean() < 3


def test_interleaved_streams_do_not_disturb_each_other(codec: Codec) -> None:
    one, two = (
        split(random_latents(codec, seed=1), "prefix"),
        split(random_latents(codec, seed=2), "prefix"),
    )
    alone = [decode_streamed(StreamingDecoder(codec, (4, 4)), pieces) for pieces in (one, two)]
    decoders = [StreamingDecoder(codec, (4, 4)) for _ in range(2)]
    mixed: list[list[Tensor]] = [[], []]
    for pieces in zip(one, two, strict=True):
        for sounds, decoder, piece in zip(mixed, decoders, pieces, strict=True):
            sounds.append(decoder.push(piece).audio)
    for sounds, decoder, expected in zip(mixed, decoders, alone, strict=True):
        assert torch.equal(torch.cat([*sounds, decoder.flush().audio], 2), expected.audio)


@pytest.mark.extended
def test_codec_is_untouched_by_streams_over_it(codec: Codec) -> None:
    latents = random_latents(codec)
    before, modules = codec.decode(latents), [type(m) for m in codec.modules()]
    weights = storages(torch.nn.Parameter)
    decoder = StreamingDecoder(codec, (4, 4))
    decoder.push(split(latents, "prefix")[0])
    assert [type(m) for m in codec.modules()] == modules
    assert torch.equal(codec.decode(latents).video, before.video)
    assert storages(torch.nn.Parameter) == weights, "a stream holds a second set of weights"


def test_reset_begins_another_stream(codec: Codec) -> None:
    pieces = split(random_latents(codec), "prefix")
    decoder = StreamingDecoder(codec, (4, 4))
    first = decode_streamed(decoder, pieces)
    decoder.reset()
    again = decode_streamed(decoder, pieces)
    assert torch.equal(first.video, again.video) and torch.equal(first.audio, again.audio)


@pytest.mark.extended
def test_state_stays_the_same_size(codec: Codec) -> None:
    pieces = split(random_latents(codec), "prefix")
    decoder = StreamingDecoder(codec, (4, 4))
    before = sum(storages(Tensor).values())
    decoder.push(pieces[0])
    sizes = []
    for _ in range(3):
        decoder.push(pieces[1])
        sizes.append(sum(storages(Tensor).values()) - before)
    assert sizes[0] == sizes[1] == sizes[2] > 0


def test_sound_comes_late_by_the_declared_look_ahead(codec: Codec) -> None:
    pieces = split(random_latents(codec), "prefix")
    decoder = StreamingDecoder(codec, (4, 4))
    assert decoder.push(pieces[0]).audio.shape[2] == 0
    assert decoder.push(pieces[1]).audio.shape[2] == 160 * (101 - decoder.look_ahead)


@torch.no_grad()
@pytest.mark.parametrize(
    ("factors", "kernels", "resnets"),
    [
        ([5, 4, 4, 2], [11, 8, 8, 4], [3, 7]),
        ([2, 1, 1, 80], [8, 3, 3, 320], [5]),
        ([6, 5, 2, 2, 2], [16, 15, 8, 4, 4], [3, 7, 11]),
    ],
)
def test_vocoder_reach_is_exact(factors: list[int], kernels: list[int], resnets: list[int]) -> None:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    torch.manual_seed(0)
    vocoder = LTX2Vocoder(
        hidden_channels=32,
        upsample_factors=factors,
        upsample_kernel_sizes=kernels,
        resnet_kernel_sizes=resnets,
        resnet_dilations=[[1, 3, 5]] * len(resnets),
    ).double()
    reach, hop = network_reach(vocoder.config), vocoder.total_upsample_factor
    mel = torch.randn(1, 2, 101, 64, dtype=torch.float64)
    changed = mel.clone()
    changed[:, :, 50] += 1
    moved = (vocoder(mel) != vocoder(changed)).any(1)[0].nonzero().flatten() // hop
    assert 0 <= reach - max(50 - int(moved.min()), int(moved.max()) - 50) <= 1


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("video_vae", "decoder_inject_noise", (True, False, False, False)),
        ("audio_vae", "causality_axis", "width"),
        ("audio_vae", "mid_block_add_attention", True),
        ("vocoder", "antialias", True),
    ],
)
def test_codec_that_cannot_be_streamed_is_refused_by_name(
    part: str, setting: str, value: object
) -> None:
    codec = Codec.from_config(CONFIG, 64, 64)
    getattr(codec, part).config[setting] = value
    with refuses("codec.cannot-stream", setting):
        StreamingDecoder(codec, (4, 4))
