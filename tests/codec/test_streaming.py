"""Streamed decoding equals whole decoding, for any split, and streams over one codec do not meet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omniforcing.codec.codec import Codec
from omniforcing.codec.reach import StreamingError, vocoder_reach
from omniforcing.codec.streaming import MelStream, SoundStream, StreamingDecoder, VideoStream, _Remembering
from omniforcing.config import AudioCodecConfig, CodecConfig, VideoCodecConfig, VocoderConfig
from omniforcing.latents import Latents, Pair
from omniforcing.layout import LAYOUTS, SAMPLE_RATE, clip_latents

SECONDS = 2
COUNTS = clip_latents(SECONDS)
VIDEO = VideoCodecConfig(latent_channels=8, encoder_channels=[8, 16, 32], decoder_channels=[8, 16, 32])
AUDIO = AudioCodecConfig(channel_multipliers=[1, 1, 2])
CONFIG = CodecConfig(video=VIDEO, audio=AUDIO, vocoder=VocoderConfig(hidden=16, resnet_kernels=[3]))


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    codec = Codec.build(CONFIG, 64, 64)
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
        Pair(latents.video[:, b.video.slice], latents.audio[:, b.audio.slice]) for b in table.blocks(table.count_for(COUNTS))
    ]


def decode_streamed(decoder: StreamingDecoder, pieces: list[Latents]) -> Pair[Tensor]:
    media = [decoder.push(piece) for piece in pieces]
    return Pair(torch.cat([m.video for m in media], 1), torch.cat([*(m.audio for m in media), decoder.flush()], 2))


def chunks_of(x: Tensor, size: int, dim: int) -> list[Tensor]:
    """A first chunk of one, then chunks of ``size``."""
    return [x.narrow(dim, 0, 1), *x.narrow(dim, 1, x.shape[dim] - 1).split(size, dim)]


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("batch", [1, 2])
def test_picture_in_pieces_equals_the_whole(codec: Codec, size: int, batch: int) -> None:
    z = codec.denormalise(random_latents(codec, batch)).video
    stream = VideoStream(codec.video_vae)
    whole = codec.video_vae.decode(z).sample
    streamed = torch.cat([stream.push(piece) for piece in chunks_of(z, size, 2)], 2)
    assert streamed.shape == whole.shape == (batch, 3, 1 + 24 * SECONDS, 64, 64)
    assert (streamed - whole).abs().max() < 1e-4 * max(1, whole.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 8, 25, 50])
def test_mel_and_sound_in_pieces_equal_the_whole(codec: Codec, size: int) -> None:
    z = codec.denormalise(random_latents(codec, 2)).audio
    mels, sounds = MelStream(codec.audio_vae), SoundStream(codec.vocoder)
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
    z, stream = torch.randn(1, 8, 5, 4, 4), VideoStream(vae)
    with torch.no_grad():
        whole = vae.decode(z).sample
        streamed = torch.cat([stream.push(piece) for piece in chunks_of(z, 2, 2)], 2)
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() < 1e-4


def test_interleaved_streams_do_not_disturb_each_other(codec: Codec) -> None:
    one, two = split(random_latents(codec, seed=1), "prefix"), split(random_latents(codec, seed=2), "prefix")
    alone = [decode_streamed(StreamingDecoder(codec, (4, 4)), pieces) for pieces in (one, two)]
    decoders = [StreamingDecoder(codec, (4, 4)) for _ in range(2)]
    mixed: list[list[Tensor]] = [[], []]
    for pieces in zip(one, two, strict=True):
        for sounds, decoder, piece in zip(mixed, decoders, pieces, strict=True):
            sounds.append(decoder.push(piece).audio)
    for sounds, decoder, expected in zip(mixed, decoders, alone, strict=True):
        assert torch.equal(torch.cat([*sounds, decoder.flush()], 2), expected.audio)


def test_codec_is_untouched_by_streams_over_it(codec: Codec) -> None:
    latents = random_latents(codec)
    before, modules = codec.decode(latents), [type(m) for m in codec.modules()]
    decoder = StreamingDecoder(codec, (4, 4))
    decoder.push(split(latents, "prefix")[0])
    assert [type(m) for m in codec.modules()] == modules
    assert torch.equal(codec.decode(latents).video, before.video)
    own = {p.data_ptr() for p in decoder._video._decoder.parameters()}
    assert own <= {p.data_ptr() for p in codec.parameters()}, "a stream holds a second set of weights"


def test_reset_begins_another_stream(codec: Codec) -> None:
    pieces = split(random_latents(codec), "prefix")
    decoder = StreamingDecoder(codec, (4, 4))
    first = decode_streamed(decoder, pieces)
    decoder.reset()
    again = decode_streamed(decoder, pieces)
    assert torch.equal(first.video, again.video) and torch.equal(first.audio, again.audio)


def state_bytes(decoder: StreamingDecoder) -> int:
    modules = [*decoder._video._decoder.modules(), *decoder._mel._decoder.modules()]
    past = [m.past for m in modules if isinstance(m, _Remembering)]
    tensors = [*(p for p in past if p is not None), decoder._sound._held]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def test_state_stays_the_same_size(codec: Codec) -> None:
    pieces = split(random_latents(codec), "prefix")
    decoder = StreamingDecoder(codec, (4, 4))
    decoder.push(pieces[0])
    sizes = []
    for _ in range(3):
        decoder.push(pieces[1])
        sizes.append(state_bytes(decoder))
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
    reach, hop = vocoder_reach(vocoder.config), vocoder.total_upsample_factor
    mel = torch.randn(1, 2, 101, 64, dtype=torch.float64)
    changed = mel.clone()
    changed[:, :, 50] += 1
    moved = (vocoder(mel) != vocoder(changed)).any(1)[0].nonzero().flatten() // hop
    assert 0 <= reach - max(50 - int(moved.min()), int(moved.max()) - 50) <= 1


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("video_vae", "decoder_causal", False),
        ("video_vae", "decoder_inject_noise", (True, False, False, False)),
        ("audio_vae", "causality_axis", "width"),
        ("audio_vae", "mid_block_add_attention", True),
        ("vocoder", "antialias", True),
    ],
)
def test_codec_that_cannot_be_streamed_is_refused_by_name(part: str, setting: str, value: object) -> None:
    codec = Codec.build(CONFIG, 64, 64)
    getattr(codec, part).register_to_config(**{setting: value})
    with pytest.raises(StreamingError, match=setting):
        StreamingDecoder(codec, (4, 4))
