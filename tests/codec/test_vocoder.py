"""The vocoder with bandwidth extension: streamed as offline, from first to last sample."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.minute import lines_at_the_block_rate
from benchmarks.sound import SHORT, random_vocoder
from omniforcing.codec.codec import Codec
from omniforcing.codec.config import AudioCodecConfig, VideoCodecConfig
from omniforcing.codec.networks import build_audio_vae, build_video_vae, refuse_other_rates
from omniforcing.codec.reach import (
    SoundReach,
    bandwidth_extender,
    network_reach,
    sound_reach,
)
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.codec.vocoder import PolyphaseUpsampler, StreamingVocoder
from omniforcing.core.pair import Pair
from omniforcing.media.mel import log_mel
from tests.support.memory import storages
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

VIDEO = VideoCodecConfig(
    latent_channels=8, encoder_channels=[8, 16, 32], decoder_channels=[8, 16, 32]
)
SECOND = 48_000


@pytest.fixture(scope="module")
def vocoder() -> Any:
    return random_vocoder()


@pytest.fixture(scope="module")
def codec(vocoder: Any) -> Codec:
    torch.manual_seed(1)
    audio = build_audio_vae(AudioCodecConfig(channel_multipliers=[1, 1, 2]))
    return Codec(build_video_vae(VIDEO), audio, vocoder, 64, 64)


def mels(frames: int = 101, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 2, frames, 64, generator=generator, dtype=dtype)


def pieces_of(mel: Tensor, size: int) -> list[Tensor]:
    return [mel[:, :, :1], *mel[:, :, 1:].split(size, 2)]


@torch.no_grad()
def streamed(vocoder: Any, mel: Tensor, size: int, reach: SoundReach | None = None) -> Tensor:
    stream = StreamingVocoder(vocoder, reach)
    return torch.cat([*(stream.push(p) for p in pieces_of(mel, size)), stream.flush()], 2)


def all_of(config: Any) -> SoundReach:
    """As far as a sample depends on anything."""
    extender = bandwidth_extender(config)
    assert extender is not None
    return SoundReach(network_reach(config), extender.reach)


@torch.no_grad()
@pytest.mark.parametrize(("size", "batch"), [(3, 1), (20, 2), (50, 1)])
def test_sound_in_pieces_equals_the_whole_from_first_to_last_sample(
    vocoder: Any, size: int, batch: int
) -> None:
    mel = mels(51, batch)
    whole = vocoder(mel)[..., : SECOND // 2]
    found = streamed(vocoder, mel, size, all_of(vocoder.config))
    assert found.shape == whole.shape == (batch, 2, SECOND // 2)
    assert (found - whole).abs().max() < 1e-5 * whole.std()


@torch.no_grad()
def test_sound_with_all_of_the_reach_is_exact_in_fp64() -> None:
    vocoder = random_vocoder().double()
    mel = mels(51, dtype=torch.float64)
    whole = vocoder(mel)[..., : SECOND // 2]
    assert (streamed(vocoder, mel, 25, all_of(vocoder.config)) - whole).abs().max() < 1e-12
    near = (streamed(vocoder, mel, 25, SoundReach(1, 2)) - whole).abs().max()
    assert near > 1e-4, "the look-ahead does nothing"


@torch.no_grad()
@pytest.mark.slow
def test_released_kernels_are_exact_to_float_rounding_at_the_declared_look_ahead() -> None:
    vocoder, mel = random_vocoder({}), mels()
    whole = vocoder(mel)[..., :SECOND]
    assert (streamed(vocoder, mel, 50) - whole).abs().max() < 2e-5 * whole.std()
    assert (streamed(vocoder, mel, 50, SoundReach(12, 8)) - whole).abs().max() < 0.05 * whole.std()


@torch.no_grad()
@pytest.mark.parametrize("part", ["vocoder", "bwe_generator"])
def test_reach_of_filtered_activations_is_where_a_change_arrives(vocoder: Any, part: str) -> None:
    network = getattr(vocoder, part)
    reach, hop = network_reach(network.config), network.total_upsample_factor
    mel = mels(61)
    mel[:, :, 30] = torch.nan
    reached = network(mel).isnan().any(1)[0].nonzero().flatten() // hop
    assert 0 <= reach - max(30 - int(reached.min()), int(reached.max()) - 30) <= 1


def test_released_vocoder_declares_270_ms() -> None:
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    with torch.device("meta"):
        config = LTX2VocoderWithBWE().config
    assert network_reach(config) == 40
    extender = bandwidth_extender(config)
    assert extender is not None and (extender.reach, extender.frame_samples) == (25, 240)
    assert sound_reach(config) == SoundReach(20, 14)
    assert sound_reach(config).look_ahead == 27


@torch.no_grad()
@pytest.mark.parametrize("at", [1, 47])
def test_stream_goes_on_from_a_saved_state_bit_for_bit(vocoder: Any, at: int) -> None:
    mel = mels(76)
    stream, again = StreamingVocoder(vocoder), StreamingVocoder(vocoder)
    stream.push(mel[:, :, :at])
    again.restore(stream.state())
    for piece in mel[:, :, at:].split(25, 2):
        assert torch.equal(stream.push(piece), again.push(piece))
    assert torch.equal(stream.flush(), again.flush())


@torch.no_grad()
def test_stream_keeps_as_much_whatever_its_length(vocoder: Any) -> None:
    stream, mel = StreamingVocoder(vocoder), mels(40)
    before = sum(storages(Tensor).values())
    sizes = []
    for _ in range(3):
        stream.push(mel)
        sizes.append(sum(storages(Tensor).values()) - before)
    assert sizes[0] == sizes[1] == sizes[2] > 0


def test_codec_at_48_khz_streams_what_it_decodes_and_declares_how_late(
    codec: Codec, tmp_path: Path
) -> None:
    latents = Pair(torch.randn(1, 4, 16, 8), torch.randn(1, 26, 16))
    codec.save(tmp_path)
    described = json.loads((tmp_path / "codec.json").read_text())
    assert described["sample_rate"] == SECOND
    look_ahead = described["vocoder_look_ahead_mel"]
    described["sound_reach"] = {"mel": 30, "frames": 20}
    (tmp_path / "codec.json").write_text(json.dumps(described))
    loaded = Codec.load(tmp_path)
    assert loaded.sound_reach == SoundReach(30, 20)
    for one in (codec, loaded):
        decoder = StreamingDecoder(one, (4, 4))
        parts = [latents.map(lambda z, a=a, b=b: z[:, a:b]) for a, b in ((0, 1), (1, None))]
        sounds = [decoder.push(part).audio for part in parts]
        assert decoder.look_ahead == (look_ahead if one is codec else 40)
        if one is codec:
            assert sum(sound.shape[2] for sound in sounds) == 480 * (101 - look_ahead)
        found = torch.cat([*sounds, decoder.flush().audio], 2)
        whole = codec.decode(latents).audio
        assert found.shape == whole.shape == (1, 2, SECOND)


def test_sine_through_the_tail_has_no_energy_at_the_block_rate(codec: Codec) -> None:
    """A tone of 400 Hz has the same mel frame throughout, so only block borders could differ."""
    seconds, kept = 6, 3
    tone = 0.5 * torch.sin(2 * math.pi * 400 * torch.arange(8000) / 16000).expand(1, 2, -1)
    # One frame for all: those of a longer tone differ by the rounding of its silent bands.
    mel = log_mel(tone)[:, :, 25:26].expand(-1, -1, 1 + 100 * seconds, -1)
    with torch.no_grad():
        means = codec.audio_vae.encode(mel).latent_dist.mode()
    z = Pair(torch.zeros(1, 1 + 3 * seconds, 16, 8), means.transpose(1, 2).flatten(2))
    decoder = StreamingDecoder(codec, (4, 4))
    sounds = [decoder.push(z.map(lambda x: x[:, :1])).audio]
    for block in range(seconds):
        piece = Pair(
            z.video[:, 1 + 3 * block : 4 + 3 * block],
            z.audio[:, 1 + 25 * block : 26 + 25 * block],
        )
        sounds.append(decoder.push(piece).audio)
    sound = torch.cat(sounds, 2)[0, 0, 2 * SECOND : (2 + kept) * SECOND]
    assert sound.std() > 1e-3
    assert lines_at_the_block_rate(sound, kept, 25) < -80
    # One sample of one block that is off by a deviation would show.
    sound[SECOND] += sound.std()
    assert lines_at_the_block_rate(sound, kept, 25) > -80


def test_vocoder_whose_rate_does_not_fit_the_mel_rate_is_refused() -> None:
    config = {**random_vocoder().config, "upsample_factors": [5, 2, 2, 2, 2, 1]}
    with refuses("codec.wrong-sample-rate", "upsample_factors", "8000", "16000"):
        refuse_other_rates(config)
    config = {**random_vocoder().config, "hop_length": 160}
    with refuses("codec.wrong-sample-rate", "bwe_upsample_factors", "24000", "48000"):
        refuse_other_rates(config)


@pytest.mark.parametrize(
    ("setting", "value"), [("antialias_kernel_size", 8), ("bwe_act_fn", "snake")]
)
def test_vocoder_of_no_release_is_not_streamed(setting: str, value: object) -> None:
    vocoder = random_vocoder({**SHORT, setting: value})
    with refuses("codec.cannot-stream", setting.removeprefix("bwe_")):
        StreamingVocoder(vocoder)


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "stride", "bias"), [(320, 80, True), (64, 16, False)])
def test_an_upsampler_by_phases_is_the_transposed_convolution(
    kernel: int, stride: int, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose1d(6, 4, kernel, stride, (kernel - stride) // 2, bias=bias)
    x = torch.randn(2, 6, 9)
    assert PolyphaseUpsampler.fits(conv)
    torch.testing.assert_close(PolyphaseUpsampler(conv)(x), conv(x))


@pytest.mark.parametrize(("stride", "groups"), [(2, 1), (100, 1), (80, 2)])
def test_other_transposed_convolutions_stay_as_they_are(stride: int, groups: int) -> None:
    assert not PolyphaseUpsampler.fits(torch.nn.ConvTranspose1d(4, 4, 320, stride, groups=groups))
