"""LTX-2.5's text encoder in one file: Gemma 4, its tokenizer and the projections of its states.

Lightricks publishes ``gemma4-12b-with-proj-ltx-2.5`` with the config in the metadata
(``gemma_config``), the text model's tensors under ``model.``, those of picture and sound, which
LTX-2 does not run, beside them, and the tokenizer's files as tensors of bytes. From it the folders
are written that transformers opens, and the file again from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.files import read_json, write_json
from omniforcing.model.weights.checkpoint import fits, read_headers
from omniforcing.model.weights.parts.gemma_checks import verify_text_model, verify_tokenizer
from omniforcing.model.weights.tensor_file import (
    BYTES,
    Entry,
    Watch,
    WeightsError,
    ignore,
    open_file,
    read_tensor,
    write_safetensors,
)

CONFIG, TOKENIZER, ASSET = "gemma_config", "tokenizer_json", "hf_asset__"
VERSION, SOURCE = "gemma_version", "gemma_source_checkpoint"
KIND = "gemma4_unified"
_TOKENIZER_FILE, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_CLASS = "Gemma4UnifiedForConditionalGeneration"
# Prefixes in Lightricks' file -> in transformers' folder.
_ROOTS = {
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "vision_model.": "model.vision_embedder.",
    "multi_modal_projector.": "model.embed_vision.",
    "audio_projector.": "model.embed_audio.",
}
_TEXT = "model.language_model."
_OTHERS = ("text_embedding_projection.", TOKENIZER, ASSET)


def is_pack(tensors: Mapping[str, Entry]) -> bool:
    """Whether a file's tensors are those of a text encoder with its tokenizer."""
    return TOKENIZER in tensors or "model.embed_tokens.weight" in tensors


def _to_transformers(name: str) -> str:
    for theirs, ours in _ROOTS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _to_original(name: str) -> str:
    for theirs, ours in _ROOTS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@dataclass(frozen=True)
class GemmaFile:
    """A text encoder's file, verified but not yet read.

    Attributes:
        file: the file.
        config: transformers' config of the whole Gemma.
        entries: its tensors by transformers' names, in the file's order.
        assets: files that lie in it as tensors of bytes, by their names.
    """

    file: Path
    config: dict[str, Any]
    entries: dict[str, Entry]
    assets: dict[str, Entry]

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(entry.size for entry in self.entries.values())

    def write(self, folder: Path, copy: bool, watch: Watch = ignore) -> None:  # noqa: ARG002
        """Write ``text_encoder`` and ``tokenizer``; nothing can be linked to."""
        encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
        encoder.mkdir()
        tokenizer.mkdir()
        write_json(encoder / "config.json", self.config)
        write_safetensors(
            encoder / "model.safetensors", self.entries, self._tensors(), {"format": "pt"}, watch
        )
        for name in self.assets:
            (tokenizer / name).write_bytes(self.asset(name))

    def asset(self, name: str) -> bytes:
        """Read a file that lies in it."""
        with open_file(self.file) as opened:
            return bytes(read_tensor(opened, self.assets[name]).numpy().tobytes())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        with open_file(self.file) as opened:
            for name, entry in self.entries.items():
                yield name, read_tensor(opened, entry)


def open_pack(file: Path) -> GemmaFile:
    """Open a text encoder's file and verify the text model's names and shapes by its config.

    Raises:
        WeightsError: if the config, the tokenizer or a tensor is missing or of another Gemma.
    """
    tensors, metadata = read_headers(file)
    try:
        config = json.loads(metadata[CONFIG])
        kind = config["model_type"]
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(
            "weights.no-config",
            f"{file} carries no config of its Gemma in its metadata ({CONFIG}), and it is never "
            "guessed; take LTX-2.5's gemma4-12b-with-proj as published",
        ) from error
    if kind != KIND:
        raise WeightsError(
            "weights.wrong-text-encoder",
            f"{file} holds a {kind}; LTX-2.5's text encoder is {KIND}: take its "
            "gemma4-12b-with-proj as published",
        )
    assets = {n.removeprefix(ASSET): entry for n, entry in tensors.items() if n.startswith(ASSET)}
    if TOKENIZER in tensors:
        assets[_TOKENIZER_FILE] = tensors[TOKENIZER]
    for name, key in ((_TOKENIZER_FILE, TOKENIZER), (_SETTINGS, ASSET + _SETTINGS)):
        if name not in assets:
            raise WeightsError(
                "weights.missing-part",
                f"{file} lacks the tensor {key}, which is its tokenizer's {name}; "
                "take the file as published",
            )
    named = {_to_transformers(n): e for n, e in tensors.items() if not n.startswith(_OTHERS)}
    packed = GemmaFile(file, {"architectures": [_CLASS], **config}, named, assets)
    _verify(packed)
    return packed


def _verify(packed: GemmaFile) -> None:
    file, named = packed.file, packed.entries
    text = {"model_type": f"{KIND}_text", **packed.config["text_config"]}
    found = {n.removeprefix(_TEXT): e for n, e in named.items() if n.startswith(_TEXT)}
    whole = verify_text_model(file, text, found, lambda name: _to_original(_TEXT + name))
    # Those of picture and sound are kept, and no module says what they should be.
    for name, entry in named.items():
        if not name.startswith(_TEXT):
            fits(entry, entry.shape)
    content = packed.asset(_TOKENIZER_FILE).decode(errors="replace")
    verify_tokenizer(file, content, _json(packed.asset(_SETTINGS)), whole)


def _json(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


@dataclass(frozen=True)
class GemmaFolders:
    """The folders of such a text encoder, to be written as one file again.

    Attributes:
        encoder: Gemma, as transformers saves it.
        tokenizer: its tokenizer.
    """

    encoder: Path
    tokenizer: Path

    def layout(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """Entries by Lightricks' names, and the metadata."""
        found = {_to_original(n): e for n, e in read_headers(self.encoder)[0].items()}
        for name, file in self._assets().items():
            found[name] = Entry(file, name, (file.stat().st_size,), BYTES)
        config = {k: v for k, v in read_json(self.encoder / "config.json").items()}
        config.pop("architectures", None)
        return found, {CONFIG: json.dumps(config), "format": "pt"}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors in the order of ``layout``."""
        entries = read_headers(self.encoder)[0]
        for name, entry in entries.items():
            with open_file(entry.file) as opened:
                yield _to_original(name), read_tensor(opened, entry)
        for name, file in self._assets().items():
            yield name, torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)

    def _assets(self) -> dict[str, Path]:
        files = sorted(file for file in self.tokenizer.iterdir() if file.is_file())
        return {TOKENIZER if f.name == _TOKENIZER_FILE else ASSET + f.name: f for f in files}


def folders_of(folder: Path) -> GemmaFolders | None:
    """Return the text encoder of a whole folder if it is one that Lightricks' file can hold."""
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    config = encoder / "config.json"
    if not config.is_file() or read_json(config).get("model_type") != KIND:
        return None
    return GemmaFolders(encoder, tokenizer)
