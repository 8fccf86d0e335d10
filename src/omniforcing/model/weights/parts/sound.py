"""Names and configs of audio VAE and vocoder: Lightricks' to diffusers' and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniforcing.model.weights.tensor_file import WeightsError

AUDIO_PREFIX, AUDIO_SECTION = "audio_vae.", "audio_vae"
VOCODER_PREFIX, VOCODER_SECTION = "vocoder.", "vocoder"
_STATISTICS = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
_STATISTICS_BACK = {ours: theirs for theirs, ours in _STATISTICS.items()}
# diffusers' key -> Lightricks' key in ``ddconfig``.
_AUDIO = {
    "base_channels": "ch",
    "output_channels": "out_ch",
    "ch_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "in_channels": "in_channels",
    "resolution": "resolution",
    "latent_channels": "z_channels",
    "norm_type": "norm_type",
    "causality_axis": "causality_axis",
    "dropout": "dropout",
    "mid_block_add_attention": "mid_block_add_attention",
    "mel_bins": "mel_bins",
    "double_z": "double_z",
}
# Parts of a vocoder tensor's name, Lightricks' -> diffusers'.
_VOCODER = {
    "conv_pre": "conv_in",
    "ups": "upsamplers",
    "resblocks": "resnets",
    "act_post": "act_out",
    "conv_post": "conv_out",
}
_VOCODER_BACK = {ours: theirs for theirs, ours in _VOCODER.items()}
# diffusers' key of a vocoder network -> Lightricks' key.
_NETWORK = {
    "hidden_channels": "upsample_initial_channel",
    "upsample_kernel_sizes": "upsample_kernel_sizes",
    "upsample_factors": "upsample_rates",
    "resnet_kernel_sizes": "resblock_kernel_sizes",
    "resnet_dilations": "resblock_dilation_sizes",
}
# diffusers' key of the bandwidth extension -> Lightricks' key in ``bwe``.
_EXTENSION = {
    "filter_length": "n_fft",
    "window_length": "n_fft",
    "hop_length": "hop_length",
    "num_mel_channels": "num_mels",
    "input_sampling_rate": "input_sampling_rate",
    "output_sampling_rate": "output_sampling_rate",
}
_RATE_2_0 = 24_000  # LTX-2.0's files leave it out


def audio_to_diffusers(name: str, config: Mapping[str, Any]) -> str:  # noqa: ARG001
    """Convert Lightricks' name of an audio VAE tensor, without prefix, to diffusers' name."""
    return _STATISTICS.get(name, name)


def audio_to_original(name: str, config: Mapping[str, Any]) -> str:  # noqa: ARG001
    """Convert diffusers' name of an audio VAE tensor to Lightricks' name, without prefix."""
    return _STATISTICS_BACK.get(name, name)


def audio_from_metadata(values: Mapping[str, Any], where: str) -> dict[str, Any]:  # noqa: ARG001
    """Convert ``config.audio_vae`` of a file's metadata to diffusers' config."""
    params, given = values["model"]["params"], values["model"]["params"]["ddconfig"]
    stft = values["preprocessing"]["stft"]
    return {
        **{ours: given[theirs] for ours, theirs in _AUDIO.items()},
        "attn_resolutions": given.get("attn_resolutions") or None,
        "sample_rate": params["sampling_rate"],
        "mel_hop_length": stft["hop_length"],
        "is_causal": stft["causal"],
    }


def audio_to_metadata(config: Mapping[str, Any], where: str) -> dict[str, Any]:  # noqa: ARG001
    """Convert diffusers' config to ``config.audio_vae`` of Lightricks' metadata."""
    network = {theirs: _plain(config[ours]) for ours, theirs in _AUDIO.items()}
    network["attn_resolutions"] = _plain(config["attn_resolutions"] or [])
    stft = {"hop_length": config["mel_hop_length"], "causal": config["is_causal"]}
    return {
        "model": {"params": {"ddconfig": network, "sampling_rate": config["sample_rate"]}},
        "preprocessing": {
            "stft": {"filter_length": 1024, "win_length": 1024, **stft},
            "mel": {"n_mel_channels": config["mel_bins"], "mel_fmin": 0, "mel_fmax": 8000},
        },
    }


def vocoder_to_diffusers(name: str, config: Mapping[str, Any]) -> str:  # noqa: ARG001
    """Convert Lightricks' name of a vocoder tensor, without prefix, to diffusers' name."""
    parts = name.replace("downsample.lowpass.", "downsample.").split(".")
    return ".".join(_VOCODER.get(part, part) for part in parts)


def vocoder_to_original(name: str, config: Mapping[str, Any]) -> str:  # noqa: ARG001
    """Convert diffusers' name of a vocoder tensor to Lightricks' name, without prefix."""
    parts = name.replace("downsample.", "downsample.lowpass.").split(".")
    return ".".join(_VOCODER_BACK.get(part, part) for part in parts)


def vocoder_from_metadata(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert ``config.vocoder`` of a file's metadata to diffusers' config.

    Raises:
        WeightsError: if a network is of no release's kind.
    """
    if "bwe" not in values:
        _refuse_kind(values, "1", where)
        rate = {"output_sampling_rate": values.get("output_sampling_rate", _RATE_2_0)}
        return {**_network(values), **rate, **_activations(values, filtered=False)}
    network, extender = values["vocoder"], values["bwe"]
    for part in (network, extender):
        _refuse_kind(part, "AMP1", where)
    own = {**_network(extender), **_activations(extender, filtered=True)}
    # Lightricks' code never ends the extender in an activation: the sum with the wave is clamped.
    own["final_act_fn"] = None
    return {
        **_network(network),
        **_activations(network, filtered=True),
        **{f"bwe_{key}": value for key, value in own.items()},
        **{ours: extender[theirs] for ours, theirs in _EXTENSION.items()},
    }


def vocoder_to_metadata(config: Mapping[str, Any], where: str) -> dict[str, Any]:  # noqa: ARG001
    """Convert diffusers' config to ``config.vocoder`` of Lightricks' metadata."""
    network = _network_to_metadata(config)
    if "bwe_upsample_factors" not in config:
        return {**network, "output_sampling_rate": config["output_sampling_rate"]}
    own = {key.removeprefix("bwe_"): v for key, v in config.items() if key.startswith("bwe_")}
    extension = {theirs: config[ours] for ours, theirs in _EXTENSION.items()}
    extender = {**_network_to_metadata(own), "apply_final_activation": False, **extension}
    return {"vocoder": network, "bwe": {**extender, "win_size": extension["n_fft"]}}


def _network(values: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: values[theirs] for ours, theirs in _NETWORK.items()}


def _activations(values: Mapping[str, Any], filtered: bool) -> dict[str, Any]:
    tanh = values.get("use_tanh_at_final", True)
    return {
        "act_fn": "snakebeta" if filtered else "leaky_relu",
        "antialias": filtered,
        "final_act_fn": "tanh" if tanh else "clamp",
        "final_bias": values.get("use_bias_at_final", True),
    }


def _network_to_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    filtered = config["act_fn"] == "snakebeta"
    return {
        **{theirs: _plain(config[ours]) for ours, theirs in _NETWORK.items()},
        "resblock": "AMP1" if filtered else "1",
        "stereo": True,
        "use_tanh_at_final": config["final_act_fn"] == "tanh",
        "activation": "snakebeta" if filtered else "snake",
        "use_bias_at_final": config["final_bias"],
    }


def _refuse_kind(values: Mapping[str, Any], resblock: str, where: str) -> None:
    needed = {"resblock": resblock, "stereo": True}
    if resblock == "AMP1":
        needed["activation"] = "snakebeta"
    for key, value in needed.items():
        if values.get(key, value) != value:
            raise WeightsError(
                "weights.unsupported-config",
                f"{where}: the vocoder's config says {key}={values[key]!r}; LTX-2 has {value!r}",
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
