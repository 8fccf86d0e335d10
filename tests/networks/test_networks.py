"""Our networks against the libraries' of the same names: weights, results and files, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.published.transformer import tiny_config
from omniforcing.codec.config import AudioCodecConfig, TextConfig, VideoCodecConfig, VocoderConfig
from omniforcing.codec.networks import build_audio_vae, build_video_vae, build_vocoder
from omniforcing.networks.choose import network_class
from omniforcing.networks.gemma import GemmaText, covers
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

VIDEO = {
    "latent_channels": 6,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("LTX2VideoDownBlock3D",) * 3,
    "decoder_block_out_channels": (16, 16, 16),
    "layers_per_block": (1, 2, 1, 1),
    "decoder_layers_per_block": (1, 1, 2, 1),
    "spatio_temporal_scaling": (True, True, False),
    "decoder_spatio_temporal_scaling": (True, False, True),
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "spatiotemporal", "temporal"),
    "upsample_type": ("spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (True, False, True),
    "upsample_factor": (2, 1, 2),
    "patch_size": 2,
}
AUDIO = {"base_channels": 16, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "latent_channels": 2}
VOCODER = {
    "in_channels": 8,
    "hidden_channels": 16,
    "upsample_kernel_sizes": [8, 4],
    "upsample_factors": [4, 2],
    "resnet_kernel_sizes": [3, 5],
    "resnet_dilations": [[1, 3], [1, 2]],
}
CONNECTORS = {
    "caption_channels": 8,
    "text_proj_in_factor": 3,
    "video_connector_num_attention_heads": 2,
    "video_connector_attention_head_dim": 4,
    "video_connector_num_layers": 2,
    "video_connector_num_learnable_registers": 4,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 4,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": 2,
    "connector_rope_base_seq_len": 16,
}
PER_STREAM = {
    **CONNECTORS,
    "rope_type": "split",
    "per_modality_projections": True,
    "video_hidden_dim": 8,
    "audio_hidden_dim": 8,
    "proj_bias": True,
    "video_gated_attn": True,
    "audio_gated_attn": True,
}
RELEASES: dict[str, dict[str, Any]] = {
    "2.0": {},
    "2.0 interleaved": {"rope_type": "interleaved", "audio_cross_attention_dim": 40},
    "2.3": {
        "gated_attn": True,
        "cross_attn_mod": True,
        "audio_gated_attn": True,
        "audio_cross_attn_mod": True,
        "use_prompt_embeddings": False,
    },
    "2.5": {
        "cross_attn_mod": True,
        "audio_cross_attn_mod": True,
        "use_prompt_adaln_single": False,
        "use_keyframes_abs_pos_embedding": True,
        "ff_bias": False,
        "norm_elementwise_affine": True,
        "perturbed_attn": True,
    },
}


def of_diffusers(name: str) -> Any:
    import diffusers
    from diffusers.pipelines import ltx2

    return getattr(diffusers, name, None) or getattr(ltx2, name)


def both(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """Ours and the library's, built after the same seed, and checked to hold the same weights."""
    pair = []
    for kind in (network_class(name, config), of_diffusers(name)):
        torch.manual_seed(3)
        pair.append(kind(**config).eval())
    ours, theirs = pair
    assert type(ours).__module__.startswith("omniforcing.")
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    assert all(torch.equal(mine[key], other[key]) for key in mine)
    return ours, theirs


def randomised(ours: nn.Module, theirs: nn.Module) -> None:
    """Give both the same random weights: some start as zeros or ones, which hide mistakes."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for key, value in ours.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        state[key] = value + 0.1 * noise if "latents_" not in key else value
    ours.load_state_dict(state)
    theirs.load_state_dict(state)


def same_files(ours: Any, theirs: Any, folder: Path) -> None:
    """Both write the same folder, and each reads the other's."""
    ours.save_pretrained(folder / "ours")
    theirs.save_pretrained(folder / "theirs")
    for file in sorted((folder / "theirs").iterdir()):
        assert (folder / "ours" / file.name).read_bytes() == file.read_bytes(), file.name
    loaded = type(ours).load(folder / "theirs")
    assert not loaded.missing and not loaded.unexpected
    state = ours.state_dict()
    assert all(torch.equal(state[key], value) for key, value in loaded.network.state_dict().items())


def ones(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_video_vae(causal: bool, tmp_path: Path) -> None:
    config = {**VIDEO, "decoder_causal": causal}
    ours, theirs = both("AutoencoderKLLTX2Video", config)
    randomised(ours, theirs)
    pixels, z = ones(1, 3, 9, 16, 16), ones(1, 6, 3, 2, 3)
    mine, other = ours.encode(pixels).latent_dist, theirs.encode(pixels).latent_dist
    assert torch.equal(mine.mean, other.mean) and torch.equal(mine.logvar, other.logvar)
    draws = [d.sample(torch.Generator().manual_seed(2)) for d in (mine, other)]
    assert torch.equal(*draws)
    assert torch.equal(ours.decode(z).sample, theirs.decode(z).sample)
    for ratio in ("spatial_compression_ratio", "temporal_compression_ratio"):
        assert getattr(ours, ratio) == getattr(theirs, ratio)
    same_files(ours, theirs, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("multipliers", [(1, 2, 2), (1, 1, 1)])
def test_audio_vae(multipliers: tuple[int, ...], tmp_path: Path) -> None:
    ours, theirs = both("AutoencoderKLLTX2Audio", {**AUDIO, "ch_mult": multipliers})
    randomised(ours, theirs)
    mel, z = ones(1, 2, 13, 64), ones(1, 2, 5, 16)
    assert torch.equal(ours.encode(mel).latent_dist.mean, theirs.encode(mel).latent_dist.mean)
    assert torch.equal(ours.decode(z).sample, theirs.decode(z).sample)
    same_files(ours, theirs, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("final", ["tanh", "clamp", None])
def test_vocoder(final: str | None, tmp_path: Path) -> None:
    ours, theirs = both("LTX2Vocoder", {**VOCODER, "final_act_fn": final})
    randomised(ours, theirs)
    mel = ones(2, 2, 7, 4)
    assert torch.equal(ours(mel), theirs(mel))
    same_files(ours, theirs, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("config", [CONNECTORS, PER_STREAM], ids=["shared", "per-stream"])
def test_connectors(config: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both("LTX2TextConnectors", config)
    randomised(ours, theirs)
    states, mask = ones(2, 8, 24), torch.ones(2, 8, dtype=torch.int64)
    mask[1, :5] = 0
    for mine, other in zip(ours(states, mask), theirs(states, mask), strict=True):
        assert torch.equal(mine, other)
    same_files(ours, theirs, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("release", RELEASES)
def test_transformer(release: str, tmp_path: Path) -> None:
    ours, theirs = both("LTX2VideoTransformer3DModel", tiny_config(**RELEASES[release]))
    assert {**ours.config} == {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    randomised(ours, theirs)
    x, steps = ones(2, 5, 48), torch.tensor([0.0, 731.0])
    for name in ("norm1", "ff"):
        mine, other = (getattr(core.transformer_blocks[1], name) for core in (ours, theirs))
        assert torch.equal(mine(x), other(x))
    for name in ("time_embed", "av_cross_attn_video_a2v_gate"):
        rows = [
            getattr(core, name)(steps, batch_size=2, hidden_dtype=torch.float32)
            for core in (ours, theirs)
        ]
        assert all(torch.equal(*pair) for pair in zip(*rows, strict=True))
    cpu = torch.device("cpu")
    video = [core.rope.prepare_video_coords(1, 4, 2, 3, device=cpu) for core in (ours, theirs)]
    audio = [core.audio_rope.prepare_audio_coords(1, 26, device=cpu) for core in (ours, theirs)]
    assert torch.equal(*video) and torch.equal(*audio)
    for name, coords in (
        ("rope", video[0].double()),
        ("audio_rope", audio[0].double()),
        ("cross_attn_rope", video[0][:, :1].double()),
        ("cross_attn_audio_rope", audio[0].double()),
    ):
        tables = [getattr(core, name)(coords) for core in (ours, theirs)]
        assert all(torch.equal(*pair) for pair in zip(*tables, strict=True))
    same_files(ours, theirs, tmp_path)


@pytest.mark.parametrize("build", ["split", "interleaved"])
def test_rotations(build: str) -> None:
    from diffusers.models.transformers import transformer_ltx2 as library

    from omniforcing.networks import layers

    core = LTX2VideoTransformer3DModel(**tiny_config(rope_type=build))
    table = core.rope(core.rope.prepare_video_coords(1, 2, 2, 2, device=torch.device("cpu")))
    x = ones(1, 8, 48)
    ours: Callable[..., Tensor] = getattr(layers, f"rotate_{build}")
    assert torch.equal(ours(x, table), getattr(library, f"apply_{build}_rotary_emb")(x, table))


@torch.no_grad()
@pytest.mark.parametrize(("window", "keys"), [(4096, 4), (6, 2)], ids=["wide", "narrow"])
def test_gemma(window: int, keys: int, tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=keys,
        head_dim=8,
        initializer_range=0.2,
        sliding_window=window,
    )
    theirs = Gemma3TextModel(config).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path)
    assert covers(tmp_path)
    ours, missing, unexpected = GemmaText.load(tmp_path)
    assert not missing and not unexpected
    ids = torch.randint(3, 40, (2, 9))
    for padding in (0, 4):
        mask = torch.ones(2, 9, dtype=torch.int64)
        mask[1, :padding] = 0
        told = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
        mine, other = ours(**told).hidden_states, theirs(**told).hidden_states
        assert len(mine) == len(other)
        assert all(torch.equal(*pair) for pair in zip(mine, other, strict=True))


def test_what_no_own_network_computes_is_the_librarys() -> None:
    others = [
        ("AutoencoderKLLTX2Video", {**VIDEO, "timestep_conditioning": True}),
        ("AutoencoderKLLTX2Video", {**VIDEO, "decoder_inject_noise": (True,) * 4}),
        ("AutoencoderKLLTX2Audio", {**AUDIO, "causality_axis": "width"}),
        ("LTX2Vocoder", {**VOCODER, "antialias": True}),
        ("LTX2VocoderWithBWE", {}),
    ]
    for name, config in others:
        assert network_class(name, config) is of_diffusers(name)


def test_a_preset_trains_our_networks() -> None:
    parts = [
        build_video_vae(VideoCodecConfig()),
        build_audio_vae(AudioCodecConfig()),
        build_vocoder(VocoderConfig()),
    ]
    assert all(type(part).__module__.startswith("omniforcing.") for part in parts)
    assert TextConfig().length % TextConfig().registers == 0
