"""Gemma and its tokenizer: found, checked against the connectors, then linked or copied."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.files import read_json
from omniforcing.model.weights.checkpoint import read_headers
from omniforcing.model.weights.parts.gemma_checks import verify_text_model, verify_tokenizer
from omniforcing.model.weights.parts.gemma_file import CONFIG, VERSION, GemmaFile
from omniforcing.model.weights.tensor_file import Watch, WeightsError, ignore

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_EMBEDDING = "embed_tokens.weight"
_TEXT_MODEL = ("embed_tokens.", "layers.", "norm.")
_SPECIAL = ("pad_token_id", "bos_token_id")
_NEEDED = {
    "2.0": "Gemma 3 12B (google/gemma-3-12b-it-qat-q4_0-unquantized)",
    "2.3": "Gemma 3 12B (google/gemma-3-12b-it-qat-q4_0-unquantized)",
    "2.5": "LTX-2.5's own Gemma 4 12B (gemma4-12b-with-proj-ltx-2.5, in its text_encoders/, or the "
    "same in transformers format)",
}


@dataclass(frozen=True)
class TextEncoderFolders:
    """Folders of a text encoder.

    Attributes:
        encoder: Gemma, as transformers saves it.
        tokenizer: its tokenizer; may be the same folder.
    """

    encoder: Path
    tokenizer: Path

    def write(self, folder: Path, copy: bool, watch: Watch = ignore) -> None:  # noqa: ARG002
        """Put ``text_encoder`` and ``tokenizer`` into a folder, as links or copies."""
        for name, source in (("text_encoder", self.encoder), ("tokenizer", self.tokenizer)):
            if not copy:
                (folder / name).symlink_to(source.resolve(), target_is_directory=True)
                continue
            # A folder that holds both is parted: weights are not copied twice.
            weights = self.encoder == self.tokenizer and name == "tokenizer"
            without = shutil.ignore_patterns("*.safetensors*") if weights else None
            shutil.copytree(source, folder / name, ignore=without)


def find(place: Path | None, release: str, connectors: Mapping[str, Any]) -> TextEncoderFolders:
    """Find and check a text encoder.

    Args:
        place: a folder with ``text_encoder`` and ``tokenizer``, or Gemma's own; None if unknown.
        release: release of the transformer, 2.0, 2.3 or 2.5.
        connectors: the connectors' config, which says how wide Gemma's states are.

    Raises:
        WeightsError: if weights or tokenizer are missing, or it is another model's.
    """
    needed = _NEEDED[release]
    remedy = "name its folder with --text-encoder, or take the transformer with --transformer-only"
    if place is None:
        raise WeightsError(
            "weights.missing-part", f"LTX-{release} needs {needed} as text encoder; {remedy}"
        )
    inner = (place / "text_encoder").is_dir()
    encoder = place / "text_encoder" if inner else place
    tokenizer = place / "tokenizer" if inner else place
    if not (encoder / "config.json").is_file() or not list(encoder.glob("*.safetensors")):
        raise WeightsError(
            "weights.missing-part",
            f"{encoder} lacks config.json or the safetensors of {needed}; {remedy}",
        )
    if not any((tokenizer / name).is_file() for name in _TOKENIZERS):
        raise WeightsError(
            "weights.missing-part",
            f"{tokenizer} lacks {' or '.join(_TOKENIZERS)}, the tokenizer of {needed}; copy it "
            "there",
        )
    config = read_json(encoder / "config.json")
    _refuse_another(encoder, config, release, connectors)
    _verify(encoder, tokenizer, config)
    return TextEncoderFolders(encoder, tokenizer)


def _verify(encoder: Path, tokenizer: Path, config: Mapping[str, Any]) -> None:
    """Verify weights and tokenizer in their folders against Gemma's config."""
    # Some configs leave special tokens to the whole model's.
    special = {key: config[key] for key in _SPECIAL if key in config}
    kind = {"model_type": f"{config['model_type']}_text"} if "text_config" in config else {}
    text = {**special, **kind, **config.get("text_config", config)}
    entries = read_headers(encoder)[0]
    begin = next((n.removesuffix(_EMBEDDING) for n in entries if n.endswith(_EMBEDDING)), "")
    named = {n.removeprefix(begin): e for n, e in entries.items() if n.startswith(begin)}
    found = {n: e for n, e in named.items() if n.startswith(_TEXT_MODEL)}
    whole = verify_text_model(encoder, text, found, lambda name: begin + name)
    quantised = next((entry for entry in entries.values() if entry.quantised), None)
    if quantised is not None:
        raise WeightsError(
            "weights.quantised",
            f"{quantised.file}: tensor {quantised.key} is quantised as {quantised.quantised}, and "
            "a text encoder in a folder is used as it is: take the bf16 one",
        )
    file = tokenizer / "tokenizer.json"
    if file.is_file():
        settings = tokenizer / "tokenizer_config.json"
        told = read_json(settings) if settings.is_file() else {}
        verify_tokenizer(file, file.read_text(encoding="utf-8", errors="replace"), told, whole)


def checked(
    packed: GemmaFile, release: str, connectors: Mapping[str, Any], version: str | None
) -> GemmaFile:
    """Check a text encoder that lies in one file.

    Args:
        packed: the file.
        release: release of the transformer.
        connectors: the connectors' config.
        version: the Gemma that the transformer says it was trained with; None for any.

    Raises:
        WeightsError: if it is another model's.
    """
    _refuse_another(packed.file, packed.config, release, connectors)
    own = packed.config.get(VERSION)
    if None not in (own, version) and own != version:
        raise WeightsError(
            "weights.wrong-text-encoder",
            f"{packed.file}: {CONFIG} says {VERSION}={own!r}, and the transformer was trained with "
            f"{version!r}: take both of one release",
        )
    return packed


def _refuse_another(
    place: Path, config: Mapping[str, Any], release: str, connectors: Mapping[str, Any]
) -> None:
    text = config.get("text_config", config)
    found = text.get("hidden_size"), text.get("num_hidden_layers")
    expected = connectors["caption_channels"], connectors["text_proj_in_factor"] - 1
    kind = str(config.get("model_type", "of no kind"))
    family = "gemma4" if release == "2.5" else "gemma3"
    if found != expected or not kind.startswith(family):
        raise WeightsError(
            "weights.wrong-text-encoder",
            f"{place} is {kind} with hidden_size and num_hidden_layers {found}; LTX-{release}'s "
            f"connectors need {family} with {expected}: take {_NEEDED[release]}",
        )
