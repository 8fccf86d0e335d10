"""Config of LTX-2's transformer, read from Lightricks' metadata or diffusers' ``config.json``.

Every key is checked and none is guessed. Values that tensor shapes do not reveal (RoPE convention,
position scales, timestep multipliers, number of heads) must be in the checkpoint: with a wrong one
all tensors still load, and the model computes something else.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from omniforcing.model.weights.tensor_file import WeightsError
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

Shapes = Mapping[str, tuple[int, ...]]


# Keys with the same name and value in both configs.
_SHARED = (
    "in_channels",
    "out_channels",
    "num_attention_heads",
    "attention_head_dim",
    "cross_attention_dim",
    "num_layers",
    "caption_channels",
    "audio_in_channels",
    "audio_out_channels",
    "audio_num_attention_heads",
    "audio_attention_head_dim",
    "audio_cross_attention_dim",
    "norm_eps",
    "norm_elementwise_affine",
    "activation_fn",
    "attention_bias",
    "timestep_scale_multiplier",
    "rope_type",
    "ff_bias",
    "audio_ff_bias",
    "use_prompt_adaln_single",
    "use_keyframes_abs_pos_embedding",
)
# Lightricks' key -> diffusers' key of the same value.
_KEYS = {key: key for key in _SHARED} | {
    "positional_embedding_theta": "rope_theta",
    "av_ca_timestep_scale_multiplier": "cross_attn_timestep_scale_multiplier",
}
# Lightricks' flag -> diffusers' flags, one per stream (video, audio).
_PAIRS = {
    "apply_gated_attention": ("gated_attn", "audio_gated_attn"),
    "cross_attention_adaln": ("cross_attn_mod", "audio_cross_attn_mod"),
}
# Defaults of flags that older releases do not write. They describe the oldest architecture; a newer
# file that lacks a flag is still caught, because its tensor names then differ from the config's.
_ABSENT = {
    "apply_gated_attention": False,
    "cross_attention_adaln": False,
    "caption_proj_before_connector": False,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
    "ff_bias": True,
    "audio_ff_bias": True,
}
# Values that are the same in every release and that both implementations assume without a check.
_FIXED: dict[str, Any] = {
    "_class_name": "AVTransformer3DModel",
    "attention_type": "default",
    "av_cross_ada_norm": True,
    "causal_temporal_positioning": True,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "dropout": 0.0,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "positional_embedding_type": "rope",
    "qk_norm": "rms_norm",
    "share_ff": False,
    "standardization_norm": "rms_norm",
    "upcast_attention": False,
    "use_audio_video_cross_attention": True,
    "use_linear_projection": False,
    "use_middle_indices_grid": True,
}
# Prefixes of keys that configure the text connectors, which are loaded elsewhere, and two keys that
# neither implementation reads.
_OTHERS = (
    "connector_",
    "audio_connector_",
    "caption_proj",
    "text_encoder_norm_type",
    "use_embeddings_connector",
)
_UNREAD = ("norm_num_groups", "num_embeds_ada_norm")
# Diffusers' keys for which Lightricks' transformer config has none: patching and the VAEs' scale
# factors, the same in every release so far.
_LATENTS: dict[str, Any] = {
    "patch_size": 1,
    "patch_size_t": 1,
    "vae_scale_factors": (8, 32, 32),
    "causal_offset": 1,
    "audio_patch_size": 1,
    "audio_patch_size_t": 1,
    "audio_scale_factor": 4,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "attention_out_bias": True,
    "qk_norm": "rms_norm_across_heads",
}
# Config of OmniForcing's published student, taken from its code because its files have none. Unlike
# LTX-2 it has interleaved RoPE with fp32 frequencies, and its cross-modal gates get sigma itself
# instead of sigma times 1000.
_AUTHORS: dict[str, Any] = {
    "num_attention_heads": 32,
    "audio_num_attention_heads": 32,
    "rope_type": "interleaved",
    "rope_double_precision": False,
    "rope_theta": 10000.0,
    "pos_embed_max_pos": 20,
    "base_height": 2048,
    "base_width": 2048,
    "audio_pos_embed_max_pos": 20,
    "norm_eps": 1e-6,
    "timestep_scale_multiplier": 1000,
    "cross_attn_timestep_scale_multiplier": 1,
}
# Keys on which no tensor's shape depends: a wrong value would go unnoticed.
_HIDDEN = tuple(_AUTHORS)
_PATCHES = ("patch_size", "patch_size_t", "audio_patch_size", "audio_patch_size_t")
_PRECISIONS = ("float64", "float32")
_PARAMETERS = frozenset(inspect.signature(LTX2VideoTransformer3DModel.__init__).parameters) - {
    "self"
}


def _refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    unknown = sorted(set(keys) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (like {near[0]!r}?)" if near else ""
        raise WeightsError(
            "weights.unknown-key",
            f"{where}: the transformer config has the unknown key {unknown[0]!r}{hint}; it may be "
            "of a pruned model or of a release after LTX-2.5, which this version cannot compute: "
            "use the weights of LTX-2.0, 2.3 or 2.5",
        )


def _require(values: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    missing = [key for key in keys if key not in values]
    if missing:
        raise WeightsError(
            "weights.missing-key",
            f"{where}: the transformer config lacks {missing[0]!r}, which no tensor's shape shows; "
            "take the file as its authors published it, metadata included",
        )


def _refuse_no_measures(values: Mapping[str, Any], where: str) -> None:
    """Refuse values of the wrong type or sign among the keys that no tensor's shape depends on."""
    for key in _HIDDEN:
        value, like = values[key], _AUTHORS[key]
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not (isinstance(value, type(like)) if isinstance(like, str | bool) else number):
            needed = (
                "a positive number"
                if not isinstance(like, str | bool)
                else f"a value like {like!r}"
            )
            raise WeightsError(
                "weights.bad-value",
                f"{where}: the transformer config says {key}={value!r}; {needed} is needed there",
            )


def checked(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check a diffusers config and drop its private keys (``_class_name`` and the like).

    Args:
        config: the parsed ``config.json``.
        where: the file, for errors.

    Returns:
        Arguments of ``LTX2VideoTransformer3DModel``.

    Raises:
        WeightsError: if the config is another model's, an unknown key or a missing one is found, a
            value is invalid or unsupported, or the streams have different numbers of heads.
    """
    kind = config.get("_class_name", LTX2VideoTransformer3DModel.__name__)
    if kind != LTX2VideoTransformer3DModel.__name__:
        raise WeightsError(
            "weights.wrong-class",
            f"{where} describes a {kind}; a {LTX2VideoTransformer3DModel.__name__} is needed there",
        )
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    _refuse_unknown(values, _PARAMETERS, where)
    _require(values, _HIDDEN, where)
    _refuse_no_measures(values, where)
    patched = [key for key in _PATCHES if values.get(key, 1) != 1]
    if patched:
        raise WeightsError(
            "weights.unsupported-config",
            f"{where}: the transformer config says {patched[0]}={values[patched[0]]!r}; "
            "LTX-2 has tokens of one latent",
        )
    heads, audio_heads = values["num_attention_heads"], values["audio_num_attention_heads"]
    if heads != audio_heads:
        raise WeightsError(
            "weights.unsupported-config",
            f"{where}: num_attention_heads is {heads} but audio_num_attention_heads is "
            f"{audio_heads}; the cross-modal RoPE needs them equal, as "
            "they are in every LTX-2 release",
        )
    return values


def from_metadata(values: Mapping[str, Any], shapes: Shapes, where: str) -> dict[str, Any]:
    """Convert Lightricks' transformer config to diffusers'.

    Args:
        values: ``config.transformer`` of the file's metadata.
        shapes: shapes of the file's tensors by diffusers name; the number of audio channels, which
            the metadata leaves out, is read from them.
        where: the file, for errors.

    Returns:
        Arguments of ``LTX2VideoTransformer3DModel``.

    Raises:
        WeightsError: as ``checked`` does, and if neither implementation supports a value.
    """
    own = [
        key
        for key in values
        if not key.startswith(_OTHERS) or key == "caption_proj_before_connector"
    ]
    maximum = ("positional_embedding_max_pos", "audio_positional_embedding_max_pos")
    _refuse_unknown(
        own, {*_KEYS, *_ABSENT, *_FIXED, *_UNREAD, *maximum, "frequencies_precision"}, where
    )
    for key, value in _FIXED.items():
        if values.get(key, value) != value:
            raise WeightsError(
                "weights.unsupported-config",
                f"{where}: the transformer config says {key}={values[key]!r}; LTX-2 has {value!r}",
            )
    values = {
        **_ABSENT,
        "audio_in_channels": _matrix(shapes, "audio_proj_in.weight", where)[1],
        **values,
    }
    _require(values, (*_KEYS, *maximum, "frequencies_precision"), where)
    if values["frequencies_precision"] not in _PRECISIONS:
        found = values["frequencies_precision"]
        raise WeightsError(
            "weights.bad-value",
            f"{where}: the transformer config says frequencies_precision={found!r}; "
            f"it must be one of {_PRECISIONS}",
        )
    frames, height, width = _positions(values, maximum[0], 3, where)
    config = {
        **_LATENTS,
        **{ours: values[theirs] for theirs, ours in _KEYS.items()},
        **{ours: values[theirs] for theirs, pair in _PAIRS.items() for ours in pair},
        **{"pos_embed_max_pos": frames, "base_height": height, "base_width": width},
        "audio_pos_embed_max_pos": _positions(values, maximum[1], 1, where)[0],
        "rope_double_precision": values["frequencies_precision"] == "float64",
        "use_prompt_embeddings": not values["caption_proj_before_connector"],
        # Adds no weights; without it diffusers silently skips spatio-temporal guidance.
        "perturbed_attn": True,
    }
    return checked(config, where)


def _positions(values: Mapping[str, Any], key: str, count: int, where: str) -> list[Any]:
    found = values[key]
    if not isinstance(found, list) or len(found) != count:
        raise WeightsError(
            "weights.bad-value",
            f"{where}: the transformer config says {key}={found!r}; "
            f"a list of {count} (seconds, pixels) is needed",
        )
    return found


def _matrix(shapes: Shapes, name: str, where: str) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != 2:
        found = f"has shape {list(shape)}" if name in shapes else "is missing"
        raise WeightsError(
            "weights.wrong-shape",
            f"{where}: tensor {name} {found}; a matrix is expected: "
            "take LTX-2 weights as their authors published them",
        )
    return shape


def to_metadata(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert a diffusers config to Lightricks' (``config.transformer``); ``where`` is for errors.

    Raises:
        WeightsError: if Lightricks' format cannot express a value.
    """
    differing = [
        key for key, value in _LATENTS.items() if _plain(config.get(key, value)) != _plain(value)
    ]
    differing += [
        ours
        for _, (ours, theirs) in _PAIRS.items()
        if config.get(ours, False) != config.get(theirs, False)
    ]
    if differing:
        raise WeightsError(
            "weights.cannot-convert",
            f"{where}: Lightricks' format cannot say {differing[0]}={config[differing[0]]!r}; "
            "keep to diffusers format",
        )
    values = {theirs: config[ours] for theirs, ours in _KEYS.items() if ours in config}
    return {
        **_FIXED,
        **values,
        **{theirs: config.get(ours, False) for theirs, (ours, _) in _PAIRS.items()},
        "positional_embedding_max_pos": [
            config[key] for key in ("pos_embed_max_pos", "base_height", "base_width")
        ],
        "audio_positional_embedding_max_pos": [config["audio_pos_embed_max_pos"]],
        "frequencies_precision": "float64" if config["rope_double_precision"] else "float32",
        "caption_proj_before_connector": not config.get("use_prompt_embeddings", True),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def of_the_authors(shapes: Shapes, where: str) -> dict[str, Any]:
    """Build the config of OmniForcing's published student, whose files carry none.

    Widths and the number of layers come from the tensors, everything else is fixed (``_AUTHORS``).

    Args:
        shapes: shapes of the file's tensors by diffusers name.
        where: the file, for errors.

    Raises:
        WeightsError: if a projection is missing or is not a matrix.
    """
    video, channels = _matrix(shapes, "proj_in.weight", where)
    audio, audio_channels = _matrix(shapes, "audio_proj_in.weight", where)
    config = {
        **_LATENTS,
        **_AUTHORS,
        "in_channels": channels,
        "out_channels": _matrix(shapes, "proj_out.weight", where)[0],
        "attention_head_dim": video // _AUTHORS["num_attention_heads"],
        "cross_attention_dim": video,
        "audio_in_channels": audio_channels,
        "audio_out_channels": _matrix(shapes, "audio_proj_out.weight", where)[0],
        "audio_attention_head_dim": audio // _AUTHORS["audio_num_attention_heads"],
        "audio_cross_attention_dim": audio,
        "num_layers": len(
            {name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}
        ),
        "caption_channels": _matrix(shapes, "caption_projection.linear_1.weight", where)[1],
    }
    return checked(config, where)


def on_meta(config: Mapping[str, Any]) -> LTX2VideoTransformer3DModel:
    """Build the transformer on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return LTX2VideoTransformer3DModel(**config)


def expected_shapes(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """List the shapes of a config's transformer by diffusers name, in the model's order.

    Raises:
        WeightsError: if no transformer can be built from the config's values.
    """
    try:
        return {name: tuple(tensor.shape) for name, tensor in on_meta(config).state_dict().items()}
    except Exception as error:  # diffusers' errors for bad values share no class
        reason = str(error).splitlines()[0]
        raise WeightsError(
            "weights.unsupported-config",
            f"{where}: no transformer can be built from its config ({reason}); "
            "use the config as published",
        ) from error
