"""Tiny random LTX-2 of every release, whole, in the formats that it is published in."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.published.transformer import (
    FACTS,
    original_tensors,
    released_metadata,
    tiny_core,
)
from omniforcing.codec.tokens import VOCABULARY, learn_tokenizer
from omniforcing.model.weights.architecture import to_metadata
from omniforcing.model.weights.parts.part import DIFFUSION, KINDS, Kind, on_meta

PARTS = json.loads((Path(__file__).parent / "ltx2_parts.json").read_text())

# Blocks of the released video VAEs: decoder_blocks and encoder_blocks of the metadata.
_ENCODER = ["compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res"]
_DECODERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "2.0": [("compress_all", {"residual": True, "multiplier": 2})] * 3,
    "2.3": [
        ("compress_space", {"multiplier": 2}),
        ("compress_time", {"multiplier": 2}),
        ("compress_all", {"multiplier": 1}),
        ("compress_all", {"multiplier": 2}),
    ],
}
_NETWORK = {
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3, 5]],
    "stereo": True,
}
_AMP = {
    **_NETWORK,
    "resblock": "AMP1",
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
}
TEXT_LAYERS, TEXT_WIDTH = 2, 16
GEMMA_VERSION, CAPTION = "gemma4-tiny-v1", "a ball bounces on the floor"
_GEMMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": TEXT_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def family(release: str) -> str:
    """The releases whose codecs and connectors are alike."""
    return "2.0" if release == "2.0" else "2.3"


def metadata(release: str) -> dict[str, Any]:
    """The config in the metadata of a file, sections and keys as published, tiny values."""
    core = tiny_core(release, **_latents())
    old = release == "2.0"
    transformer = {
        **FACTS["metadata"][release if old else "2.3"],
        **to_metadata(core.config, "here"),
        "caption_channels": TEXT_WIDTH,
        "connector_num_attention_heads": 2,
        "connector_attention_head_dim": 8 if old else 24,
        "connector_num_layers": 1,
        "connector_num_learnable_registers": 4,
        "connector_positional_embedding_max_pos": [64],
    }
    if not old:
        transformer |= {
            "audio_connector_num_attention_heads": 2,
            "audio_connector_attention_head_dim": 16,
            "connector_apply_gated_attention": True,
        }
    return {
        "transformer": transformer,
        "vae": _vae(release),
        "audio_vae": {
            "model": {
                "params": {
                    "ddconfig": {
                        "double_z": True,
                        "mel_bins": 64,
                        "z_channels": 1,
                        "resolution": 256,
                        "downsample_time": False,
                        "in_channels": 2,
                        "out_ch": 2,
                        "ch": 16,
                        "ch_mult": [1, 1, 2],
                        "num_res_blocks": 1,
                        "attn_resolutions": [],
                        "dropout": 0.0,
                        "mid_block_add_attention": False,
                        "norm_type": "pixel",
                        "causality_axis": "height",
                    },
                    "sampling_rate": 16000,
                }
            },
            "preprocessing": {
                "stft": {"filter_length": 1024, "hop_length": 160, "causal": True},
                "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
            },
        },
        "vocoder": _vocoder(release),
    }


def _latents() -> dict[str, Any]:
    """Channels of the transformer that fit the tiny VAEs."""
    sizes = {"in_channels": 8, "out_channels": 8, "audio_in_channels": 16, "audio_out_channels": 16}
    return {**sizes, "caption_channels": TEXT_WIDTH}


def _vae(release: str) -> dict[str, Any]:
    encoder: list[Any] = [["res_x", {"num_layers": 1}]]
    for index, name in enumerate(_ENCODER):
        last = family(release) == "2.3" and index == 3
        encoder += [[name, {"multiplier": 1 if last else 2}], ["res_x", {"num_layers": 1}]]
    decoder: list[Any] = [["res_x", {"num_layers": 1, "inject_noise": False}]]
    for index, (name, told) in enumerate(_DECODERS[family(release)]):
        decoder += [[name, told], ["res_x", {"num_layers": 1 + index % 2}]]
    found = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "encoder_blocks": encoder,
        "decoder_blocks": decoder,
        "scaling_factor": 1.0,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
        "timestep_conditioning": False,
        "encoder_base_channels": 8,
        "decoder_base_channels": 4,
    }
    return found if release == "2.0" else {**found, "spatial_padding_mode": "zeros"}


def _vocoder(release: str) -> dict[str, Any]:
    if release == "2.0":
        return {
            **_NETWORK,
            "upsample_initial_channel": 32,
            "resblock": "1",
            "upsample_rates": [6, 5, 2, 2, 2],
            "upsample_kernel_sizes": [16, 15, 8, 4, 4],
        }
    network = {"upsample_rates": [5, 2, 2, 2, 2, 2], "upsample_kernel_sizes": [11, *[4] * 5]}
    extension = {"upsample_rates": [6, 5, 2, 2, 2], "upsample_kernel_sizes": [12, 11, 4, 4, 4]}
    rates = {"input_sampling_rate": 16000, "output_sampling_rate": 48000}
    stft = {"hop_length": 80, "n_fft": 512, "win_size": 512, "num_mels": 64}
    extender = {**_AMP, **extension, **rates, **stft, "upsample_initial_channel": 32}
    return {
        "vocoder": {**_AMP, **network, "upsample_initial_channel": 64},
        "bwe": {**extender, "apply_final_activation": False},
    }


def released_module(kind: Kind, release: str) -> tuple[dict[str, Any], nn.Module]:
    """Config and module of a part as released, the module without memory."""
    told, shapes = PARTS[family(release)]["config"], {}
    for name, width in (("aggregate", 3840), ("video_aggregate", 4096), ("audio_aggregate", 2048)):
        for leaf, size in (("weight", (width, 188160)), ("bias", (width,))):
            if (name == "aggregate") == (release == "2.0") and (leaf, release) != ("bias", "2.0"):
                shapes[f"text_embedding_projection.{name}_embed.{leaf}"] = size
    values = {**told, "transformer": released_metadata(release)}[kind.section]
    config = kind.from_metadata(values, shapes, "here")
    again = kind.to_metadata(config, "here") | _rest(kind, values)
    assert kind.from_metadata(again, shapes, "") == config
    return config, on_meta(kind, config, "here")


def released_diffusion_decoder() -> tuple[dict[str, Any], nn.Module]:
    """Config and module of LTX-2.5's diffusion decoder as released, without memory."""
    widths = {f"{DIFFUSION.prefix}decoder.shared_adaln.proj.weight": (7 * 256, 384)}
    config = DIFFUSION.from_metadata(PARTS["diffusion_decoder"], widths, "here")
    return config, on_meta(DIFFUSION, config, "here")


def _rest(kind: Kind, values: dict[str, Any]) -> dict[str, Any]:
    """What the connectors read of the transformer's own keys."""
    keys = ("rope_type", "frequencies_precision")
    return {key: values[key] for key in keys} if kind.name == "connectors" else {}


def diffusion_vae(vae: dict[str, Any]) -> dict[str, Any]:
    """The config of LTX-2.5's diffusion VAE, keys as published, with tiny values.

    Args:
        vae: config of the convolutional one, whose encoder it has.
    """
    strides = [[1, 2, 2], [2, 1, 1], [2, 2, 2], [2, 2, 2]]
    decoder = {
        "_class_name": "NADiffusionDecoder",
        "in_channels": vae["latent_channels"],
        "out_channels": 3,
        "patch_size": 4,
        "head_dim": 16,
        "stage_channels": [64, 32, 16, 16, 16],
        "stage_depths": [1, 2, 1, 1, 2],
        "stage_kernels": [[3, 1, 1], [3, 3, 3], [3, 3, 3], [3, 5, 5], [11, 3, 3]],
        "upsamples": [[stride, n] for stride, n in zip(strides, (2, 2, 1, 1), strict=True)],
        "spatial_padding_mode": "zeros",
        "resampler_kind": "linear",
        "stage5_kernel": [11, 3, 3],
        "timestep_scale_multiplier": 1000.0,
        "default_num_inference_steps": 1,
    }
    encoder = {"blocks": vae["encoder_blocks"], "out_channels": vae["latent_channels"]}
    return {
        "_class_name": "CausalDiffusionVAE",
        "encoder": {**encoder, "patch_size": vae["patch_size"], "norm_layer": "pixel_norm"},
        "decoder": decoder,
        "model_output_type": "x0",
    }


def save_published(release: str, folder: Path) -> Path:
    """Write tiny random weights as a release is published: one file, or LTX-2.5's several.

    Returns:
        The file, or the folder of several.
    """
    told = metadata(release)
    tensors = original_tensors(tiny_core(release, torch.bfloat16, **_latents()))
    shapes = _projections(release, tensors)
    for kind in KINDS:
        config = kind.from_metadata(told[kind.section], shapes, "here")
        for name, value in _filled(on_meta(kind, config, "here")).items():
            tensors[kind.prefix + kind.to_original(name, config)] = value
    tensors["vae.per_channel_statistics.mean-of-stds"] = torch.zeros(8)
    folder.mkdir(parents=True, exist_ok=True)
    said = {"config": json.dumps(told), "model_version": f"{release}.0"}
    if release != "2.5":
        save_file(tensors, folder / "ltx.safetensors", said)
        return folder / "ltx.safetensors"
    for name in ("diffusion_models", "text_encoders", "vae"):
        (folder / name).mkdir(exist_ok=True)
    projections = _take(tensors, "text_embedding_projection.")
    video = {name.removeprefix("vae."): t for name, t in _take(tensors, "vae.").items()}
    save_file(video, folder / "vae" / "video-vae-conv.safetensors", said)
    sound = _take(tensors, "audio_vae.") | _take(tensors, "vocoder.")
    save_file(sound, folder / "vae" / "audio-vae.safetensors", said)
    vae = {"vae": diffusion_vae(told["vae"])}
    pixels = {n: t for n, t in video.items() if not n.startswith("decoder.")}
    pixels |= _diffusion_tensors(vae["vae"])
    named = {"config": json.dumps(vae), "model_version": "2.5.0"}
    save_file(pixels, folder / "vae" / "video-vae.safetensors", named)
    version = {"gemma_source_checkpoint": json.dumps({"gemma_version": GEMMA_VERSION})}
    file = folder / "diffusion_models" / "transformer.safetensors"
    save_file(tensors, file, said | version)
    _save_pack(projections, folder / "text_encoders" / "gemma4-with-proj.safetensors")
    return folder


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors of a prefix out of those of a whole file."""
    return {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _diffusion_tensors(vae: dict[str, Any]) -> dict[str, Tensor]:
    """The decoder's tensors, as in the file: queries, keys and values in one, and one unread."""
    steps = {f"{DIFFUSION.prefix}decoder.shared_adaln.proj.weight": (1, 24)}
    config = DIFFUSION.from_metadata(vae, steps, "here")
    found: dict[str, list[Tensor]] = {"decoder.type_emb": [torch.zeros(8)]}
    for name, value in _filled(on_meta(DIFFUSION, config, "here")).items():
        if "latents_" not in name:
            found.setdefault(DIFFUSION.to_original(name, config), []).append(value)
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}


def gemma_config() -> dict[str, Any]:
    """The config of LTX-2.5's Gemma, keys as published, with tiny values."""
    text = {
        **_GEMMA,
        "model_type": "gemma4_unified_text",
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    picture = {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": TEXT_WIDTH}
    return {
        "model_type": "gemma4_unified",
        "gemma_version": GEMMA_VERSION,
        "text_config": text,
        "vision_config": {**picture, "mm_posemb_size": 8, "output_proj_dims": TEXT_WIDTH},
        "audio_config": {"audio_embed_dim": 6},
        "tie_word_embeddings": True,
    }


def _save_pack(projections: dict[str, Tensor], file: Path) -> None:
    """Write LTX-2.5's text encoder: Gemma, the projections, and the tokenizer as bytes."""
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    torch.manual_seed(0)
    config = gemma_config()
    gemma = Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(**config)).bfloat16()
    with tempfile.TemporaryDirectory() as place:
        gemma.save_pretrained(place)
        saved = load_file(Path(place) / "model.safetensors")
        learn_tokenizer([CAPTION], 16).save_pretrained(place)
        files = [Path(place) / name for name in ("tokenizer.json", "tokenizer_config.json")]
        content = [torch.frombuffer(bytearray(f.read_bytes()), dtype=torch.uint8) for f in files]
    towers = {
        "model.language_model.": "model.",
        "model.vision_embedder.": "vision_model.",
        "model.embed_vision.": "multi_modal_projector.",
        "model.embed_audio.": "audio_projector.",
    }
    tensors = dict(projections)
    for name, tensor in saved.items():
        ours = next(prefix for prefix in towers if name.startswith(prefix))
        tensors[towers[ours] + name.removeprefix(ours)] = tensor
    tensors["tokenizer_json"], tensors["hf_asset__tokenizer_config.json"] = content
    save_file(tensors, file, {"gemma_config": json.dumps(config), "format": "pt"})


def _projections(release: str, tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of the projections of Gemma's states, which set widths that no config has."""
    packed = TEXT_WIDTH * (TEXT_LAYERS + 1)
    if release == "2.0":
        return {"text_embedding_projection.aggregate_embed.weight": (TEXT_WIDTH, packed)}
    shapes: dict[str, tuple[int, ...]] = {}
    for stream, name in (("video", "patchify_proj"), ("audio", "audio_patchify_proj")):
        width = tensors[f"model.diffusion_model.{name}.bias"].shape[0]
        place = f"text_embedding_projection.{stream}_aggregate_embed"
        shapes |= {f"{place}.weight": (width, packed), f"{place}.bias": (width,)}
    return shapes


def _filled(module: nn.Module) -> dict[str, Tensor]:
    """Random bf16 values for every parameter and buffer of a module."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, like in module.state_dict().items():
        value = torch.randn(like.shape, generator=generator) / math.sqrt(max(1, like.shape[-1]))
        found[name] = value.abs().add(0.1).bfloat16() if "std" in name else value.bfloat16()
    return found


def save_gemma(release: str, folder: Path) -> Path:
    """Write a tiny Gemma and a tokenizer in folders, which fit a release's tiny connectors."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    torch.manual_seed(0)
    gemma: Any = Gemma3TextModel(Gemma3TextConfig(**_GEMMA))
    if release == "2.5":
        from transformers import Gemma4TextConfig, Gemma4TextModel

        layers = ["sliding_attention", "full_attention"]
        own = {"layer_types": layers, "hidden_size_per_layer_input": 0, "global_head_dim": 8}
        gemma = Gemma4TextModel(Gemma4TextConfig(**_GEMMA, **own))
    gemma.save_pretrained(folder / "text_encoder")
    learn_tokenizer([CAPTION], 16).save_pretrained(folder / "tokenizer")
    return folder
