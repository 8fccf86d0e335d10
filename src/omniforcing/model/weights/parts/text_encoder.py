"""Gemma and its tokenizer: found, checked against the connectors, then linked or copied."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.files import read_json
from omniforcing.model.weights.parts.gemma_file import CONFIG, VERSION, GemmaFile
from omniforcing.model.weights.tensor_file import Watch, WeightsError, ignore

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
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
    _refuse_another(encoder, read_json(encoder / "config.json"), release, connectors)
    return TextEncoderFolders(encoder, tokenizer)


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
