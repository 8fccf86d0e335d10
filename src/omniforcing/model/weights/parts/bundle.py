"""LTX-2 whole: opened from the files that hold it, written as a folder or Lightricks' files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from omniforcing.model.weights.architecture import to_metadata
from omniforcing.model.weights.checkpoint import Checkpoint, open_checkpoint, read_headers
from omniforcing.model.weights.names import TRANSFORMER, generation, to_original
from omniforcing.model.weights.parts.part import KINDS, Part, from_folder, from_original
from omniforcing.model.weights.parts.text_encoder import TextEncoderFolders, find
from omniforcing.model.weights.tensor_file import (
    Entry,
    Watch,
    WeightsError,
    ignore,
    write_safetensors,
)
from omniforcing.model.weights.writing import write_diffusers

WHOLE_FILE = "ltx.safetensors"
# The files that LTX-2.5 comes in, and the prefixes of the tensors in each.
_SPLIT = {
    "transformer.safetensors": (TRANSFORMER,),
    "video-vae.safetensors": ("vae.",),
    "audio-vae.safetensors": ("audio_vae.", "vocoder."),
    "text-projection.safetensors": ("text_embedding_projection.",),
}
# LTX-2.5's video VAE has a file of its own, and no prefix there.
_BARE = ("encoder.", "decoder.", "per_channel_statistics.")


@dataclass(frozen=True)
class Bundle:
    """The whole model, verified but not yet read.

    Attributes:
        transformer: the transformer.
        parts: the other parts by the names of their folders.
        text: the text encoder; None where it is not asked for.
    """

    transformer: Checkpoint
    parts: dict[str, Part]
    text: TextEncoderFolders | None = None

    @property
    def size(self) -> int:
        """Bytes of all weights but the text encoder's."""
        entries = [self.transformer.entries, *(part.entries for part in self.parts.values())]
        return sum(entry.size for held in entries for entry in held.values())

    def write_folder(self, folder: Path, copy: bool, watch: Watch = ignore) -> None:
        """Write diffusers' layout: a folder for each part.

        Args:
            folder: an existing folder.
            copy: copy the text encoder instead of linking to it.
            watch: called after each tensor with its size in bytes.
        """
        write_diffusers(self.transformer, folder, watch=watch)
        for part in self.parts.values():
            part.write(folder, watch)
        if self.text is not None:
            self.text.write(folder, copy)

    def write_originals(self, folder: Path, watch: Watch = ignore) -> None:
        """Write Lightricks' file, or for LTX-2.5 its files, without the text encoder.

        Raises:
            WeightsError: if Lightricks' format cannot express a value of a config.
        """
        config = self._metadata()
        entries = self._named()
        split = generation(self.transformer.entries) == "2.5"
        for file, prefixes in (_SPLIT if split else {WHOLE_FILE: ("",)}).items():
            names = [name for name in entries if name.startswith(prefixes)]
            bare = "vae." if prefixes == ("vae.",) else ""
            layout = {name.removeprefix(bare): entries[name] for name in names}
            metadata = {
                "config": json.dumps(config),
                "model_version": f"{generation(self.transformer.entries)}.0",
            }
            write_safetensors(folder / file, layout, self._originals(set(names)), metadata, watch)

    def _named(self) -> dict[str, Entry]:
        """Entries by the names of a single file, in the order in which they are read."""
        transformer = self.transformer
        named = {TRANSFORMER + to_original(n): transformer.entries[n] for n in transformer.names()}
        for part in self.parts.values():
            named |= dict(zip(part.originals().values(), part.entries.values(), strict=True))
        return named

    def _originals(self, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of these names of a single file, in the order of ``_named``."""
        names = {n: TRANSFORMER + to_original(n) for n in self.transformer.names()}
        of_it = [name for name in names if names[name] in wanted]
        for name, tensor in self.transformer.tensors(of_it):
            yield names[name], tensor
        for part in self.parts.values():
            names = {n: original for n, original in part.originals().items() if original in wanted}
            for name, tensor in part.tensors(names):
                yield names[name], tensor

    def _metadata(self) -> dict[str, Any]:
        where = str(self.transformer.source)
        told = {"transformer": to_metadata(self.transformer.config, where)}
        for part in self.parts.values():
            own = part.kind.to_metadata(part.config, str(part.source))
            told.setdefault(part.kind.section, {}).update(own)
        connectors = self.parts["connectors"].config
        for key in ("rope_type", "rope_double_precision"):
            if connectors[key] != self.transformer.config[key]:
                raise WeightsError(
                    "weights.cannot-convert",
                    f"{where}: {key} is {self.transformer.config[key]!r} in the transformer and "
                    f"{connectors[key]!r} in the connectors, and Lightricks' format has one for "
                    "both; keep to diffusers format",
                )
        return told


def is_whole(folder: Path) -> bool:
    """Whether a folder has diffusers' layout with parts beside the transformer."""
    return (folder / "transformer").is_dir() and any((folder / k.name).is_dir() for k in KINDS)


def open_bundle(
    source: Path, more: Sequence[Path] = (), text: Path | None = None, with_text: bool = True
) -> Bundle:
    """Open LTX-2 from its files and verify all of it from the headers.

    Args:
        source: Lightricks' file, a folder with LTX-2.5's files, a diffusers folder, or a student.
        more: files or folders with parts that ``source`` lacks.
        text: folder of the text encoder; by default that of a diffusers folder among the others.
        with_text: whether a text encoder is needed.

    Raises:
        WeightsError: if a part is missing, damaged, of another release or of no release.
    """
    parts: dict[str, Part] = {}
    tensors: dict[str, Entry] = {}
    configs: dict[Path, dict[str, Any]] = {}
    transformer = source
    for place in (source, *more):
        if is_whole(place):
            for kind in (k for k in KINDS if (place / k.name).is_dir() and k.name not in parts):
                parts[kind.name] = from_folder(kind, place / kind.name)
            if text is None and (place / "text_encoder").is_dir():
                text = place
            continue
        for file in _files(place):
            found, configs[file] = _original(file)
            double = next((key for key in found if key in tensors), None)
            if double is not None:
                raise WeightsError(
                    "weights.several-checkpoints",
                    f"{file} and {tensors[double].file} both hold {double}; name one of them",
                )
            tensors |= found
            if place == source and f"{TRANSFORMER}patchify_proj.weight" in found:
                transformer = file
    checkpoint = open_checkpoint(transformer)
    for kind in KINDS:
        own = {key: entry for key, entry in tensors.items() if key.startswith(kind.prefixes)}
        if own and kind.name not in parts:
            parts[kind.name] = from_original(kind, own, configs)
    missing = next((kind for kind in KINDS if kind.name not in parts), None)
    if missing is not None:
        raise WeightsError(
            "weights.missing-part",
            f"{source} holds no {missing.title}; add the file or folder that does with --with, or "
            "take the transformer alone with --transformer-only",
        )
    _refuse_mixed(checkpoint, parts)
    release = generation(checkpoint.entries)
    ordered = {kind.name: parts[kind.name] for kind in KINDS}
    config = parts["connectors"].config
    folders = find(text, release, config) if with_text else None
    return Bundle(checkpoint, ordered, folders)


def _files(place: Path) -> list[Path]:
    """Files of Lightricks' format in a place; none where it is another format's."""
    if place.is_file():
        return [place] if place.suffix == ".safetensors" else []
    if not place.is_dir() or list(place.glob("*.index.json")) or (place / "config.json").exists():
        return []
    return sorted(place.rglob("*.safetensors"))


def _original(file: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Read a file's tensors, by the names that a single file has, and its config."""
    found, metadata = read_headers(file)
    bare = any(key.startswith(("encoder.conv_in", "decoder.conv_in")) for key in found)
    if bare:
        found = {f"vae.{key}" if key.startswith(_BARE) else key: e for key, e in found.items()}
    try:
        config = json.loads(metadata.get("config", "{}"))
    except ValueError:
        config = {}
    return found, config if isinstance(config, dict) else {}


def _refuse_mixed(checkpoint: Checkpoint, parts: Mapping[str, Part]) -> None:
    """Refuse parts of another release than the transformer's, or of other latents."""
    family = "2.0" if generation(checkpoint.entries) == "2.0" else "2.3"
    shown = {"2.0": "LTX-2.0", "2.3": "LTX-2.3 or 2.5"}
    for part in parts.values():
        release = part.release() or family
        if release != family:
            raise WeightsError(
                "weights.mixed-releases",
                f"{part.source}: the {part.kind.title} is {shown[release]}'s, and the transformer "
                f"in {checkpoint.source} is {shown[family]}'s; take both of one release",
            )
    config, video, audio = checkpoint.config, parts["vae"].config, parts["audio_vae"].config
    made = video["latent_channels"], audio["base_channels"]
    needed = config["in_channels"], config["audio_in_channels"]
    if made != needed:
        raise WeightsError(
            "weights.mixed-releases",
            f"{parts['vae'].source}: the VAEs make latents of {made} channels, and the transformer "
            f"in {checkpoint.source} takes {needed}; take all of one release",
        )
