"""A part of LTX-2 on disk: verified by names and shapes against its own config, not yet read."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.core.files import read_json
from omniforcing.model.weights.checkpoint import fits, read_headers
from omniforcing.model.weights.parts import connectors, diffusion_decoder, sound, video_vae
from omniforcing.model.weights.tensor_file import (
    Entry,
    Watch,
    WeightsError,
    ignore,
    open_file,
    read_tensor,
    write_safetensors,
)
from omniforcing.networks.choose import network_class

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
FromMetadata = Callable[[Config, Shapes, str], Config]
_WEIGHTS = "diffusion_pytorch_model.safetensors"
# Statistics that some files carry and that nobody reads.
_UNREAD = ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    Attributes:
        name: its folder in diffusers' layout.
        title: what messages call it.
        prefixes: of its tensors in Lightricks' file; what follows a single one is renamed.
        section: of the metadata's config.
        classes: diffusers' classes.
        to_diffusers: name in Lightricks' file and config -> name in diffusers' module.
        to_original: the way back.
        from_metadata: section, shapes by Lightricks' name, and place -> diffusers' config.
        to_metadata: diffusers' config and place -> section.
        splits: part of an original name -> parts of the names of those that its tensor's rows are
            divided among.
    """

    name: str
    title: str
    prefixes: tuple[str, ...]
    section: str
    classes: tuple[str, ...]
    to_diffusers: Callable[[str, Config], str]
    to_original: Callable[[str, Config], str]
    from_metadata: FromMetadata
    to_metadata: Callable[[Config, str], Config]
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def prefix(self) -> str:
        """The one prefix that is no part of the names; empty where there are several."""
        return self.prefixes[0] if len(self.prefixes) == 1 else ""

    def class_of(self, config: Config) -> str:
        """Name of diffusers' class of a config."""
        return self.classes["bwe_upsample_factors" in config and len(self.classes) > 1]


def _shapeless(convert: Callable[[Config, str], Config]) -> FromMetadata:
    return lambda values, _, where: convert(values, where)


KINDS = (
    Kind(
        "vae",
        "video VAE",
        (video_vae.PREFIX,),
        video_vae.SECTION,
        ("AutoencoderKLLTX2Video",),
        video_vae.to_diffusers,
        video_vae.to_original,
        _shapeless(video_vae.from_metadata),
        video_vae.to_metadata,
    ),
    Kind(
        "audio_vae",
        "audio VAE",
        (sound.AUDIO_PREFIX,),
        sound.AUDIO_SECTION,
        ("AutoencoderKLLTX2Audio",),
        sound.audio_to_diffusers,
        sound.audio_to_original,
        _shapeless(sound.audio_from_metadata),
        sound.audio_to_metadata,
    ),
    Kind(
        "vocoder",
        "vocoder",
        (sound.VOCODER_PREFIX,),
        sound.VOCODER_SECTION,
        ("LTX2Vocoder", "LTX2VocoderWithBWE"),
        sound.vocoder_to_diffusers,
        sound.vocoder_to_original,
        _shapeless(sound.vocoder_from_metadata),
        sound.vocoder_to_metadata,
    ),
    Kind(
        "connectors",
        "text connectors",
        connectors.PREFIXES,
        connectors.SECTION,
        ("LTX2TextConnectors",),
        connectors.to_diffusers,
        connectors.to_original,
        connectors.from_metadata,
        connectors.to_metadata,
    ),
)
# LTX-2.5's second decoder, which nobody must have.
DIFFUSION = Kind(
    "diffusion_decoder",
    "diffusion decoder",
    (diffusion_decoder.PREFIX,),
    diffusion_decoder.SECTION,
    ("LTX2VideoDiffusionDecoderModel",),
    diffusion_decoder.to_diffusers,
    diffusion_decoder.to_original,
    diffusion_decoder.from_metadata,
    diffusion_decoder.to_metadata,
    diffusion_decoder.SPLITS,
)


@dataclass(frozen=True)
class Part:
    """A part's weights, verified but not yet read.

    Attributes:
        kind: what it is.
        source: file or folder, for messages.
        config: arguments of diffusers' class.
        entries: place, shape and dtype of every tensor by diffusers name, in the module's order.
    """

    kind: Kind
    source: Path
    config: Config
    entries: dict[str, Entry]

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, one at a time; all by default, in the module's order."""
        wanted = self.entries if names is None else names
        for file, group in groupby(wanted, key=lambda name: self.entries[name].file):
            with open_file(file) as opened:
                for name in group:
                    yield name, read_tensor(opened, self.entries[name])

    def release(self) -> str | None:
        """Tell the release by the architecture: 2.0, or 2.3 for 2.5's too; None if all have it."""
        if self.kind.name == "vae":
            return "2.0" if len(self.config["decoder_block_out_channels"]) == 3 else "2.3"
        if self.kind.name == "vocoder":
            return "2.3" if "bwe_upsample_factors" in self.config else "2.0"
        if self.kind is DIFFUSION:
            return "2.3"
        if self.kind.name == "connectors":
            return "2.3" if self.config["per_modality_projections"] else "2.0"
        return None

    def write(self, folder: Path, watch: Watch = ignore) -> None:
        """Write the part's folder in diffusers format, bit for bit."""
        target = folder / self.kind.name
        on_meta(self.kind, self.config, str(self.source)).save_config(target)
        metadata = {"format": "pt"}
        write_safetensors(target / _WEIGHTS, self.entries, self.tensors(), metadata, watch)

    def originals(self) -> dict[str, list[str]]:
        """Diffusers names by Lightricks' name; of several, their rows follow one another."""
        kind, found = self.kind, dict[str, list[str]]()
        for name in self.entries:
            original = kind.prefix + kind.to_original(name, self.config)
            found.setdefault(original, []).append(name)
        return found

    def original_entries(self) -> dict[str, Entry]:
        """Shapes and dtypes by Lightricks' name."""
        found = {}
        for original, names in self.originals().items():
            entries = [self.entries[name] for name in names]
            rows = (sum(e.shape[0] for e in entries),) if len(entries) > 1 else ()
            shape = (*rows, *entries[0].shape[len(rows) :])
            found[original] = replace(entries[0], shape=shape, rows=None)
        return found

    def original_tensors(self, wanted: Container[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors by those of Lightricks' names that are wanted, in their order."""
        chosen = {o: names for o, names in self.originals().items() if o in wanted}
        tensors = self.tensors([name for names in chosen.values() for name in names])
        for original, names in chosen.items():
            parts = [next(tensors)[1] for _ in names]
            yield original, parts[0] if len(parts) == 1 else torch.cat(parts)


def from_folder(kind: Kind, folder: Path) -> Part:
    """Open a part's folder in diffusers format.

    Raises:
        WeightsError: if it is of another class, or its tensors are not those of its config.
    """
    file = folder / "config.json"
    told = read_json(file)
    found = told.get("_class_name") if isinstance(told, dict) else None
    if found not in kind.classes:
        raise WeightsError(
            "weights.wrong-class",
            f"{file} describes {found}; the {kind.title} is {' or '.join(kind.classes)}",
        )
    config = {key: value for key, value in told.items() if not key.startswith("_")}
    return _verified(kind, folder, config, read_headers(folder)[0])


def from_original(
    kind: Kind, tensors: Mapping[str, Entry], metadata: Mapping[Path, Config]
) -> Part:
    """Open a part out of the tensors of Lightricks' files.

    Args:
        kind: what it is.
        tensors: its tensors by the names that a single file has.
        metadata: ``config`` of each file's metadata.

    Raises:
        WeightsError: if its config is missing or of no release, or its tensors do not fit it.
    """
    # Of the connectors the first prefix's file has the config: the transformer's.
    first = next((e for p in kind.prefixes for k, e in tensors.items() if k.startswith(p)))
    where, shapes = str(first.file), {key: entry.shape for key, entry in tensors.items()}
    try:
        config = kind.from_metadata(metadata[first.file][kind.section], shapes, where)
    except (KeyError, TypeError, IndexError) as error:
        raise WeightsError(
            "weights.no-config",
            f"{where} carries no whole config of the {kind.title} in its metadata ({error} is "
            "missing or no value), and it is never guessed; take the file as published",
        ) from error
    named = {}
    for key, entry in tensors.items():
        name = key.removeprefix(kind.prefix)
        if name.removeprefix("per_channel_statistics.") not in _UNREAD:
            for part, own in _parted(kind, name, entry):
                named[kind.to_diffusers(part, config)] = own
    return _verified(kind, first.file, config, named)


def _parted(kind: Kind, name: str, entry: Entry) -> Iterator[tuple[str, Entry]]:
    """Divide a tensor's rows among the names that it stands for."""
    infix, parts = next((split for split in kind.splits if split[0] in name), ("", ()))
    if not parts or not entry.shape or entry.shape[0] % len(parts):
        yield name, entry
        return
    rows = entry.shape[0] // len(parts)
    for index, part in enumerate(parts):
        shape = (rows, *entry.shape[1:])
        own = replace(entry, shape=shape, rows=(index * rows, (index + 1) * rows))
        yield name.replace(infix, part), own


def on_meta(kind: Kind, config: Config, where: str) -> Any:
    """Build a part on the meta device, without memory for its weights.

    Raises:
        WeightsError: if none can be built from the config.
    """
    with torch.device("meta"):
        try:
            return network_class(kind.class_of(config), config)(**config)
        except Exception as error:  # diffusers' errors for bad values share no class
            reason = str(error).splitlines()[0]
            raise WeightsError(
                "weights.unsupported-config",
                f"{where}: no {kind.title} can be built from its config ({reason}); "
                "use the config as published",
            ) from error


def refuse_misfit(
    source: Path,
    title: str,
    module: nn.Module,
    found: Mapping[str, Entry],
    shown: Callable[[str], str] = str,
) -> list[str]:
    """Refuse tensors that are not those of a module.

    Args:
        source: file or folder of the tensors.
        title: the module in words.
        module: the module, on the meta device.
        found: the tensors by the module's names.
        shown: the name in the file of one of the module's.

    Returns:
        The module's names, in its order.

    Raises:
        WeightsError: if a tensor is missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        told = f"lacks {shown(missing[0])}" if missing else f"holds {found[extra[0]].key} beyond it"
        raise WeightsError(
            "weights.wrong-tensors",
            f"{source}: the {title} {told} ({len(missing)} missing, {len(extra)} unexpected, "
            f"of {len(expected)} tensors); download it again or take that part of one release",
        )
    for name, tensor in expected.items():
        fits(found[name], tuple(tensor.shape))
    return list(expected)


def _verified(kind: Kind, source: Path, config: Config, found: Mapping[str, Entry]) -> Part:
    module = on_meta(kind, config, str(source))
    expected = refuse_misfit(source, kind.title, module, found)
    own = {key: value for key, value in module.config.items() if not key.startswith("_")}
    return Part(kind, source, own, {name: found[name] for name in expected})
