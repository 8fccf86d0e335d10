"""Low-rank adapters (LoRA) of LTX-2's transformer on disk: read, verified, merged, written.

A file holds two thin matrices for each layer that it changes, ``A [rank, in]`` and
``B [out, rank]``; the layer's weight becomes ``W + scale * B A``. Names are those of diffusers
(``transformer.``) or of Lightricks and ComfyUI (``diffusion_model.``), the factors ``lora_A`` and
``lora_B`` or ``lora_down`` and ``lora_up``. A factor ``alpha / rank`` is part of ``B`` here, as
readers disagree about where it stands.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from omniforcing.model.weights.checkpoint import Checkpoint
from omniforcing.model.weights.names import to_diffusers, to_original
from omniforcing.model.weights.rope_layout import exchange_rope
from omniforcing.model.weights.tensor_file import (
    DTYPES,
    Entry,
    WeightsError,
    open_file,
    read_header,
    read_tensor,
)

ADAPTER_FILE = "adapter.safetensors"
# Prefixes of the layers' names, the longest first, as one is the beginning of another.
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
_FACTORS = {
    **dict.fromkeys((".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight"), "a"),
    **dict.fromkeys((".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight"), "b"),
    ".alpha": "alpha",
}
# Beginnings of the names that a file is written with.
NAMINGS = {"diffusers": "transformer.", "lightricks": "diffusion_model."}
BASE_NAME, BASE_DIGEST = "base", "base_sha256"


class Factors(NamedTuple):
    """The change of one layer, ``b @ a``.

    Attributes:
        a: ``[rank, in]``.
        b: ``[out, rank]``.
    """

    a: Tensor
    b: Tensor

    @property
    def delta(self) -> Tensor:
        """The change as a whole matrix ``[out, in]``, in fp32."""
        return self.b.float() @ self.a.float()


@dataclass(frozen=True)
class Lora:
    """An adapter.

    Attributes:
        source: file that it was read from, or will be written to.
        layers: changes by the layers' diffusers names.
        facts: the file's metadata: name and hash of its base, rank, RoPE convention, where known.
    """

    source: Path
    layers: dict[str, Factors]
    facts: dict[str, str] = field(default_factory=dict)

    def check_base(self, digest: str, where: str) -> None:
        """Refuse another base than the one the adapter was trained on.

        Args:
            digest: ``weights_digest`` of the base.
            where: the base, for the message.

        Raises:
            WeightsError: if the adapter names another one, or none.
        """
        named = self.facts.get(BASE_DIGEST)
        if named != digest:
            told = f"weights with sha256 {named[:12]}" if named else "a base that it does not name"
            raise WeightsError(
                "adapter.other-base",
                f"{self.source} is an adapter for {told}, and {where} has {digest[:12]}; take the "
                "base that it was trained on",
            )

    def fitted(self, checkpoint: Checkpoint) -> Lora:
        """The adapter for a base, its factors in the order of the base's RoPE convention.

        Args:
            checkpoint: the base, of which no tensor is read.

        Raises:
            WeightsError: for a layer that the base lacks, another shape, or a rank above a side of
                the matrix.
        """
        shapes = {
            name.removesuffix(".weight"): entry.shape
            for name, entry in checkpoint.entries.items()
            if name.endswith(".weight") and len(entry.shape) == 2
        }
        self.check_shapes(shapes, str(checkpoint.source))
        return self.in_convention(checkpoint.config, checkpoint.config["rope_type"])

    def in_convention(self, config: Mapping[str, Any], to: str) -> Lora:
        """The adapter with the rows of queries and keys in the order of a RoPE convention.

        Args:
            config: config of the base, whose heads decide the order.
            to: ``split`` or ``interleaved``.
        """
        # LTX-2's releases and all adapters of them are split; so is one that does not say.
        if self.facts.get("rope", "split") == to:
            return self
        turned = {
            name: Factors(a, exchange_rope(f"{name}.weight", b, config, to))
            for name, (a, b) in self.layers.items()
        }
        return replace(self, layers=turned, facts={**self.facts, "rope": to})

    def check_shapes(self, shapes: Mapping[str, Sequence[int]], where: str) -> None:
        """Refuse layers that a base does not have.

        Args:
            shapes: ``[out, in]`` of the base's layers, by diffusers name.
            where: the base, for messages.

        Raises:
            WeightsError: as ``fitted``.
        """
        unknown = [name for name in self.layers if name not in shapes]
        if unknown:
            raise WeightsError(
                "adapter.unknown-layer",
                f"{self.source} changes {unknown[0]} ({len(unknown)} of {len(self.layers)} layers "
                f"like it), which {where} does not have; it is an adapter of another model or "
                "release",
            )
        for name, (a, b) in self.layers.items():
            found, (out, width) = [b.shape[0], a.shape[1]], shapes[name]
            if found != [out, width]:
                raise WeightsError(
                    "adapter.wrong-shape",
                    f"{self.source} changes {name} as a matrix {found}, and in {where} it is "
                    f"{[out, width]}; it is an adapter of another model or release",
                )
            check_rank(a.shape[0], name, (out, width), str(self.source))


def check_rank(rank: int, name: str, shape: Sequence[int], where: str) -> None:
    """Refuse a rank above the smaller side of a matrix.

    Raises:
        WeightsError: naming the layer.
    """
    if rank > min(shape):
        raise WeightsError(
            "adapter.rank-too-large",
            f"{where}: rank {rank} is above the smaller side of {name} {list(shape)}; "
            f"at most {min(shape)} is possible there",
        )


def weights_digest(checkpoint: Checkpoint) -> str:
    """Hash a base's tensors by name, dtype, shape and bytes, whatever file format they are in."""
    digest = hashlib.sha256()
    names = sorted(checkpoint.entries)
    for name, tensor in checkpoint.tensors(names):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_lora(path: Path) -> Lora:
    """Read an adapter in any of the namings above.

    Raises:
        WeightsError: if the file is unreadable, holds something other than factors, lacks one of a
            pair, or holds NaN.
    """
    if path.is_dir():
        path = path / ADAPTER_FILE
    if path.suffix != ".safetensors" and path.exists():
        raise WeightsError(
            "weights.not-safetensors",
            f"{path} is no safetensors file; get the adapter as safetensors",
        )
    entries, facts = read_header(path)
    found: dict[str, dict[str, Entry]] = {}
    for key, entry in entries.items():
        layer, factor = _parse(key, path)
        found.setdefault(layer, {})[factor] = entry
    if not found:
        raise WeightsError("adapter.not-one", f"{path} is empty; name an adapter's file")
    layers = {}
    with open_file(path) as opened:
        for layer, parts in found.items():
            missing = {"a", "b"} - parts.keys()
            if missing:
                raise WeightsError(
                    "adapter.missing-factor",
                    f"{path} has only one of the two factors of {layer}; download it again",
                )
            for entry in parts.values():
                _check_dtype(entry)
            a, b = (read_tensor(opened, parts[name]) for name in ("a", "b"))
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
                raise WeightsError(
                    "adapter.wrong-shape",
                    f"{path}: the factors of {layer} are {list(a.shape)} and {list(b.shape)}, "
                    "which have no rank in common; download it again",
                )
            if "alpha" in parts:
                alpha = float(read_tensor(opened, parts["alpha"]))
                b = b * (alpha / a.shape[0])
            layers[layer] = Factors(a, b)
    return Lora(path, layers, facts)


def _check_dtype(entry: Entry) -> None:
    if entry.dtype not in DTYPES:
        raise WeightsError(
            "weights.quantised",
            f"{entry.file}: tensor {entry.key} is stored as {entry.dtype}; "
            "quantised adapters are not read: take the bf16 file",
        )


def _parse(key: str, path: Path) -> tuple[str, str]:
    """Layer and factor that a key of a file names."""
    name = key
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for ending, factor in _FACTORS.items():
        if name.endswith(ending):
            return to_diffusers(name.removesuffix(ending)), factor
    raise WeightsError(
        "adapter.not-one",
        f"{path} holds {key}, which is no factor of a LoRA; name an LTX-2 LoRA, in the names of "
        "diffusers or of ComfyUI",
    )


def check_scale(scale: float, where: str) -> None:
    """Refuse a scale that is not finite.

    Raises:
        WeightsError: naming the adapter.
    """
    if not math.isfinite(scale):
        raise WeightsError(
            "adapter.bad-scale",
            f"{where}: scale {scale} is no finite number; 1 is the adapter as it was trained",
        )


def with_scale(text: str) -> tuple[Path, float]:
    """Read ``FILE`` or ``FILE:SCALE`` of an option or a config; the scale is 1 by default.

    Raises:
        WeightsError: for a scale that is not finite.
    """
    path, _, last = text.rpartition(":")
    try:
        scale = float(last)
    except ValueError:
        path, scale = "", 1.0
    file = Path(path or text)
    check_scale(scale, str(file))
    return file, scale


def read_loras(texts: Iterable[str]) -> list[tuple[Lora, float]]:
    """Read adapters that are named as ``with_scale`` takes them."""
    return [(read_lora(file), scale) for file, scale in map(with_scale, texts)]


def merged(checkpoint: Checkpoint, loras: Iterable[tuple[Lora, float]]) -> Checkpoint:
    """Merge adapters into a base, ``W + scale * B A``; its tensors are changed as they are read.

    Sums are taken in fp32 and rounded once, to the base's own dtype.

    Args:
        checkpoint: the base.
        loras: adapters, each with its scale.

    Raises:
        WeightsError: if one does not fit, or a scale is not finite.
    """
    fitted = []
    for lora, scale in loras:
        check_scale(scale, str(lora.source))
        fitted.append((lora.fitted(checkpoint), scale))

    def turn(name: str, tensor: Tensor) -> Tensor:
        tensor, layer = checkpoint.turn(name, tensor), name.removesuffix(".weight")
        changing = [(lora, scale) for lora, scale in fitted if layer in lora.layers]
        if not changing or layer == name:
            return tensor
        changes = [scale * lora.layers[layer].delta for lora, scale in changing]
        return (tensor.float() + sum(changes)).to(tensor.dtype)

    return replace(checkpoint, turn=turn)


def lora_bytes(lora: Lora, naming: str = "diffusers") -> bytes:
    """Content of an adapter's file.

    Args:
        lora: the adapter. Other programs expect the split RoPE convention.
        naming: ``diffusers`` or ``lightricks`` (ComfyUI's too).
    """
    prefix, tensors = NAMINGS[naming], {}
    for name, (a, b) in lora.layers.items():
        layer = prefix + (to_original(name) if naming == "lightricks" else name)
        tensors[f"{layer}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{layer}.lora_B.weight"] = b.detach().cpu().contiguous()
    return save(tensors, {"format": "pt", **lora.facts})


def write_lora(lora: Lora, path: Path, naming: str = "diffusers") -> None:
    """Write an adapter's file; the arguments are those of ``lora_bytes``."""
    path.write_bytes(lora_bytes(lora, naming))
