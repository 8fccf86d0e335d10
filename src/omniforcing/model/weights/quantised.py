"""Quantised weights that people share: what is read, and how; the rest is refused by name.

Read are fp8 as plain numbers, fp8 with a scale per tensor or row (``scale_weight``, or
``weight_scale`` in newer files), and int8 with such a scale. A ``comfy_quant`` tensor beside a
weight, or the file's metadata, names the scheme. Weights become bf16; scales of activations, which
only 8-bit kernels need, are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omniforcing.model.weights.tensor_file import Entry, WeightsError, open_file

_SCALES = ("scale_weight", "weight_scale")
_UNREAD = ("scale_input", "input_scale", "comfy_quant")
_MARKER = "scaled_fp8"  # an empty tensor beside the weights of older files
_FP8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_SCHEMES = {**_FP8, "int8_tensorwise": "I8"}


def dequantised(tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> dict[str, Entry]:
    """Turn a file's entries into those of its weights as bf16.

    Args:
        tensors: entries by their keys.
        metadata: the file's metadata.

    Returns:
        The entries without those that only quantisation needs; unchanged if nothing is quantised.

    Raises:
        WeightsError: if a scheme is not known.
    """
    stored = set(_SCHEMES.values())
    if not any(entry.dtype in stored or k.endswith(".comfy_quant") for k, entry in tensors.items()):
        return dict(tensors)
    schemes = _schemes(tensors, metadata)
    found = {}
    for key, entry in tensors.items():
        layer, _, leaf = key.rpartition(".")
        beside = leaf in (*_SCALES, *_UNREAD) and f"{layer}.weight" in tensors
        if beside or leaf == _MARKER:
            continue
        found[key] = entry
        if entry.dtype in stored or (layer in schemes and leaf == "weight"):
            found[key] = _read_as_bf16(entry, layer, tensors, schemes.get(layer))
    return found


def _read_as_bf16(
    entry: Entry, layer: str, tensors: Mapping[str, Entry], scheme: Mapping[str, Any] | None
) -> Entry:
    names = [f"{layer}.{name}" for name in _SCALES if f"{layer}.{name}" in tensors]
    scale = tensors[names[0]] if names and entry.key.endswith("weight") else None
    told = {} if scheme is None else dict(scheme)
    name = told.get("format", next((n for n, d in _FP8.items() if d == entry.dtype), None))
    turned = "convrot" in told and bool(told["convrot"])
    rows = (1, entry.shape[0] if entry.shape else 1)
    sized = scale is None or _count(scale) in rows
    if _SCHEMES.get(str(name)) != entry.dtype or turned or not sized:
        shown = f"{name or entry.dtype}{' with rotated channels (convrot)' if turned else ''}"
        raise WeightsError(
            "weights.quantised",
            f"{entry.file}: tensor {entry.key} is quantised as {shown}, which is not read (fp8 and "
            "int8 with a scale per tensor or row are): take the bf16 file",
        )
    if entry.dtype == "I8" and scale is None:
        raise WeightsError(
            "weights.quantised",
            f"{entry.file}: tensor {entry.key} is int8 without a weight_scale beside it; "
            "take the bf16 file",
        )
    return replace(entry, dtype="BF16", quantised=entry.dtype, scale=scale)


def _count(entry: Entry) -> int:
    count = 1
    for size in entry.shape:
        count *= size
    return count


def _schemes(
    tensors: Mapping[str, Entry], metadata: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Read the scheme of each quantised layer: from the metadata, or the tensor beside it."""
    schemes: dict[str, dict[str, Any]] = {}
    try:
        told = json.loads(metadata.get("_quantization_metadata", "{}")).get("layers", {})
        schemes |= {layer: dict(scheme) for layer, scheme in told.items()}
        for key, entry in tensors.items():
            layer, _, leaf = key.rpartition(".")
            if leaf == "comfy_quant":
                with open_file(entry.file) as opened:
                    text = bytes(opened.get_tensor(entry.key).tolist())
                schemes[layer] = dict(json.loads(text))
    except (ValueError, AttributeError, TypeError) as error:
        file = next(iter(tensors.values())).file
        raise WeightsError(
            "weights.quantised",
            f"{file} does not say in JSON how it is quantised ({error}); take the bf16 file",
        ) from error
    return schemes
