"""LTX-2 whole: opened from the files that hold it, written as a folder or Lightricks' files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from omniforcing.codec.networks import refuse_other_rates
from omniforcing.core.files import read_json
from omniforcing.core.layout import MEL_RATE, SAMPLE_RATE
from omniforcing.model.weights.architecture import to_metadata
from omniforcing.model.weights.checkpoint import Checkpoint, open_checkpoint, read_headers
from omniforcing.model.weights.names import TRANSFORMER, generation, to_original
from omniforcing.model.weights.parts import diffusion_decoder
from omniforcing.model.weights.parts.gemma_file import (
    SOURCE,
    GemmaFile,
    GemmaFolders,
    folders_of,
    is_pack,
    open_pack,
)
from omniforcing.model.weights.parts.part import (
    DIFFUSION,
    KINDS,
    Part,
    from_folder,
    from_original,
)
from omniforcing.model.weights.parts.text_encoder import TextEncoderFolders, checked, find
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
    "video-vae-conv.safetensors": ("vae.",),
    "audio-vae.safetensors": ("audio_vae.", "vocoder."),
}
_DIFFUSION_FILE = "video-vae.safetensors"
# The projections alone, or with Gemma where the folder has that of LTX-2.5.
_TEXT_FILES = ("text-projection.safetensors", "gemma4-with-proj.safetensors")
_PROJECTIONS = "text_embedding_projection."
_MODULAR_INDEX, _ECHO = "modular_model_index.json", "EchoModularPipeline"
# LTX-2.5's video VAEs have files of their own, and no prefix there.
_BARE = ("encoder.", "decoder.", "per_channel_statistics.")


@dataclass(frozen=True)
class Bundle:
    """The whole model, verified but not yet read.

    Attributes:
        transformer: the transformer.
        parts: the other parts by the names of their folders.
        text: the text encoder; None where it is not asked for.
        gemma: folders of LTX-2.5's text encoder, whose file can be written again.
    """

    transformer: Checkpoint
    parts: dict[str, Part]
    text: TextEncoderFolders | GemmaFile | None = None
    gemma: GemmaFolders | None = None

    @property
    def size(self) -> int:
        """Bytes of all weights but those of a text encoder that lies in folders."""
        entries = [self.transformer.entries, *(part.entries for part in self.parts.values())]
        packed = self.text.size if isinstance(self.text, GemmaFile) else 0
        if self.text is None and self.gemma is not None:
            packed = sum(entry.size for entry in self.gemma.layout()[0].values())
        return packed + sum(entry.size for held in entries for entry in held.values())

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
            self.text.write(folder, copy, watch)

    def write_originals(self, folder: Path, watch: Watch = ignore) -> None:
        """Write Lightricks' file, or LTX-2.5's files.

        A text encoder is written for LTX-2.5 alone, and where Lightricks' file can hold it.

        Raises:
            WeightsError: if Lightricks' format cannot express a value of a config.
        """
        config, entries = self._metadata(), self._named()
        version = {"model_version": f"{generation(self.transformer.entries)}.0"}
        metadata = {"config": json.dumps(config), **version}
        if generation(self.transformer.entries) != "2.5":
            self._write(folder / WHOLE_FILE, [n for n in entries if _is_plain(n)], metadata, watch)
            return
        for file, prefixes in _SPLIT.items():
            names = [name for name in entries if name.startswith(prefixes)]
            self._write(folder / file, names, metadata, watch)
        if DIFFUSION.name in self.parts:
            vae = diffusion_decoder.whole_metadata(
                DIFFUSION.to_metadata(self.parts[DIFFUSION.name].config, ""), config["vae"]
            )
            own = {"config": json.dumps({"vae": vae}), **version}
            begin = ("vae.encoder.", DIFFUSION.prefix)
            names = [name for name in entries if name.startswith(begin)]
            self._write(folder / _DIFFUSION_FILE, names, own, watch)
        names = [name for name in entries if name.startswith(_PROJECTIONS)]
        if self.gemma is None:
            self._write(folder / _TEXT_FILES[0], names, metadata, watch)
            return
        layout, own = self.gemma.layout()
        layout |= {name: entries[name] for name in names}
        tensors = chain(self.gemma.tensors(), self._originals(set(names)))
        write_safetensors(folder / _TEXT_FILES[1], layout, tensors, own, watch)

    def _write(self, file: Path, names: list[str], metadata: dict[str, str], watch: Watch) -> None:
        entries = self._named()
        bare = ("vae.", DIFFUSION.prefix)
        alone = all(name.startswith(bare) for name in names)
        layout = {n.removeprefix(bare[0]).removeprefix(bare[1]) if alone else n: n for n in names}
        write_safetensors(
            file,
            {name: entries[own] for name, own in layout.items()},
            self._originals(set(names)),
            metadata,
            watch,
        )

    def _named(self) -> dict[str, Entry]:
        """Entries by the names of a single file, in the order in which they are read."""
        transformer = self.transformer
        named = {TRANSFORMER + to_original(n): transformer.entries[n] for n in transformer.names()}
        for part in self.parts.values():
            named |= part.original_entries()
        return named

    def _originals(self, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of these names of a single file, in the order of ``_named``."""
        names = {n: TRANSFORMER + to_original(n) for n in self.transformer.names()}
        of_it = [name for name in names if names[name] in wanted]
        for name, tensor in self.transformer.tensors(of_it):
            yield names[name], tensor
        for part in self.parts.values():
            yield from part.original_tensors(wanted)

    def _metadata(self) -> dict[str, Any]:
        where = str(self.transformer.source)
        told = {"transformer": to_metadata(self.transformer.config, where)}
        for kind in KINDS:
            part = self.parts[kind.name]
            own = kind.to_metadata(part.config, str(part.source))
            told.setdefault(kind.section, {}).update(own)
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


def _is_plain(name: str) -> bool:
    return not name.startswith(DIFFUSION.prefix)


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
        text: folder of the text encoder, or LTX-2.5's file of it; by default the one that lies
            among the others.
        with_text: whether a text encoder is needed.

    Raises:
        WeightsError: if a part is missing, damaged, of another release or of no release.
    """
    found = _Found(source)
    for given in (source, *more):
        found.look(given)
    if found.transformer == source and found.tensors and source.is_dir():
        raise WeightsError(
            "weights.no-transformer",
            f"none of the files in {source} holds the transformer; add the one that does there "
            "(LTX-2.5: in diffusion_models/)",
        )
    checkpoint = open_checkpoint(found.transformer)
    parts = found.complete(source)
    _refuse_mixed(checkpoint, parts)
    _refuse_rates(parts)
    release = generation(checkpoint.entries)
    # A named text encoder goes before one that a folder or file among the others brings.
    place = text or found.pack or found.text
    encoder: TextEncoderFolders | GemmaFile | None = None
    if with_text:
        config = parts["connectors"].config
        if place is not None and place.suffix == ".safetensors":
            encoder = checked(open_pack(place), release, config, found.gemma_version)
        else:
            encoder = find(place, release, config)
    gemma = folders_of(source) if is_whole(source) else None
    return Bundle(checkpoint, parts, encoder, gemma)


class _Found:
    """What the places that a user names hold.

    Args:
        source: the first of them, which has the transformer.

    Attributes:
        parts: parts of diffusers folders.
        tensors: tensors of Lightricks' files by the names that a single one has.
        configs: config in the metadata of each.
        transformer: place of the transformer.
        text: a diffusers folder with a text encoder.
        pack: LTX-2.5's file of a text encoder.
        gemma_version: the Gemma that the transformer says it was trained with; None for any.
    """

    def __init__(self, source: Path) -> None:
        self.source = self.transformer = source
        self.parts: dict[str, Part] = {}
        self.tensors: dict[str, Entry] = {}
        self.configs: dict[Path, dict[str, Any]] = {}
        self.text: Path | None = None
        self.pack: Path | None = None
        self.gemma_version: str | None = None

    def look(self, place: Path) -> None:
        """Take what a place has and none before it had."""
        if is_whole(place):
            _refuse_echo(place)
            for kind in (*KINDS, DIFFUSION):
                if (place / kind.name).is_dir() and kind.name not in self.parts:
                    self.parts[kind.name] = from_folder(kind, place / kind.name)
            if self.text is None and (place / "text_encoder").is_dir():
                self.text = place
            return
        for file in _files(place):
            found, metadata = read_headers(file)
            if is_pack(found):
                self.pack = file
                # The projections of its states are the connectors'.
                found = {n: e for n, e in found.items() if n.startswith(_PROJECTIONS)}
            self.configs[file] = _json(metadata, "config")
            found = _as_of_a_single_file(found, self.configs[file])
            double = next((key for key in found if key in self.tensors), None)
            if double is not None:
                raise WeightsError(
                    "weights.several-checkpoints",
                    f"{file} and {self.tensors[double].file} both hold {double}; name one of them",
                )
            self.tensors |= found
            if place == self.source and f"{TRANSFORMER}patchify_proj.weight" in found:
                self.transformer = file
                self.gemma_version = _json(metadata, SOURCE).get("gemma_version")

    def complete(self, source: Path) -> dict[str, Part]:
        """Return all parts.

        Raises:
            WeightsError: if one that everybody needs is missing, or its tensors do not fit.
        """
        parts = dict(self.parts)
        for kind in (*KINDS, DIFFUSION):
            own = {k: entry for k, entry in self.tensors.items() if k.startswith(kind.prefixes)}
            if own and kind.name not in parts:
                parts[kind.name] = from_original(kind, own, self.configs)
        missing = next((kind for kind in KINDS if kind.name not in parts), None)
        if missing is not None and missing.name == "vae" and DIFFUSION.name in parts:
            raise WeightsError(
                "weights.unsupported-part",
                f"{parts[DIFFUSION.name].source} holds the video VAE {diffusion_decoder.CLASS}, "
                "whose decoder is a diffusion model; clips are encoded by the convolutional one: "
                "add its file too (LTX-2.5: video-vae-conv) with --with",
            )
        if missing is not None:
            raise WeightsError(
                "weights.missing-part",
                f"{source} holds no {missing.title}; add the file or folder that does with --with, "
                "or take the transformer alone with --transformer-only",
            )
        return {kind.name: parts[kind.name] for kind in (*KINDS, DIFFUSION) if kind.name in parts}


def _refuse_echo(place: Path) -> None:
    """Refuse JoyAI-Echo, whose layout and tensors are those of LTX-2.0.

    Raises:
        WeightsError: with what it was trained for.
    """
    index = place / _MODULAR_INDEX
    told = read_json(index) if index.is_file() else {}
    if told.get("_class_name") == _ECHO:
        raise WeightsError(
            "weights.unsupported-model",
            f"{place} is JoyAI-Echo by its {_MODULAR_INDEX}: its transformer is distilled to eight "
            "sigmas without guidance, with memory tokens as its past, so that it is no teacher, "
            "and no stage starts a student from it; take LTX-2's own, or convert its transformer "
            "with --transformer-only",
        )


def _files(place: Path) -> list[Path]:
    """Files of Lightricks' format in a place; none where it is another format's."""
    if place.is_file():
        return [place] if place.suffix == ".safetensors" else []
    if not place.is_dir() or list(place.glob("*.index.json")) or (place / "config.json").exists():
        return []
    return sorted(place.rglob("*.safetensors"))


def _as_of_a_single_file(found: Mapping[str, Entry], config: Mapping[str, Any]) -> dict[str, Entry]:
    """Name a file's tensors as a file that holds the whole model does."""
    bare = any(key.startswith(("encoder.conv_in", "decoder.conv_in")) for key in found)
    if bare:
        found = {f"vae.{key}" if key.startswith(_BARE) else key: e for key, e in found.items()}
    vae = config.get("vae")
    if not isinstance(vae, dict) or vae.get("_class_name") != diffusion_decoder.CLASS or not bare:
        return dict(found)
    named = {diffusion_decoder.renamed(key): entry for key, entry in found.items()}
    return {key: entry for key, entry in named.items() if key is not None}


def _json(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """Read an object in a file's metadata; empty where there is none."""
    try:
        value = json.loads(metadata.get(key, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _refuse_mixed(checkpoint: Checkpoint, parts: Mapping[str, Part]) -> None:
    """Refuse parts of another release than the transformer's, or of other latents."""
    family = "2.0" if generation(checkpoint.entries) == "2.0" else "2.3"
    shown = {"2.0": "LTX-2.0", "2.3": "LTX-2.3 or 2.5"}
    for part in parts.values():
        release = part.release() or family
        if release != family:
            raise WeightsError(
                "weights.mixed-releases",
                f"{part.source} holds the {part.kind.title} of {shown[release]}, and "
                f"{checkpoint.source} the transformer of {shown[family]}; take both of one release",
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


def _refuse_rates(parts: Mapping[str, Part]) -> None:
    """Refuse sound of other rates than 100 mel frames a second."""
    vocoder, heard = parts["vocoder"], parts["audio_vae"]
    refuse_other_rates(vocoder.config, f"{vocoder.source}: the vocoder")
    rate, hop = heard.config["sample_rate"], heard.config["mel_hop_length"]
    if (rate, rate / hop) != (SAMPLE_RATE, MEL_RATE):
        raise WeightsError(
            "weights.wrong-rate",
            f"{heard.source}: the audio VAE hears {rate} Hz with a mel frame every {hop} samples; "
            f"LTX-2's hear {SAMPLE_RATE} Hz and {MEL_RATE} frames a second: take that part of a "
            "release",
        )
