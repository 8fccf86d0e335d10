"""LTX-2's transformer weights on disk: verified from their headers, read one tensor at a time.

Three formats are recognised by their tensor names:

- ``diffusers``: a folder with ``config.json`` and safetensors, one file or shards with an index.
- ``original``: Lightricks' file, with the config in its metadata; codecs and connectors in the same
  file are ignored.
- ``omniforcing``: the student that OmniForcing's authors published, with an index and no config.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.files import read_json
from omniforcing.model.weights.architecture import (
    checked,
    expected_shapes,
    from_metadata,
    of_the_authors,
    on_meta,
)
from omniforcing.model.weights.names import (
    OTHER_PARTS,
    TRANSFORMER,
    generation,
    to_diffusers,
    to_original,
)
from omniforcing.model.weights.quantised import dequantised
from omniforcing.model.weights.tensor_file import (
    DTYPES,
    Entry,
    WeightsError,
    open_file,
    read_header,
    read_tensor,
)
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

SINKS_FILE = "sinks.safetensors"
_INDEX = ".safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_AUTHORS_PREFIX, _AUTHORS_SINKS = "model.", "model.audio_sink_tokens"


def _as_stored(name: str, tensor: Tensor) -> Tensor:  # noqa: ARG001
    return tensor


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's weights, verified but not yet read.

    Attributes:
        source: the folder or file that was opened, for messages.
        format: ``diffusers``, ``original`` or ``omniforcing``.
        config: arguments of diffusers' ``LTX2VideoTransformer3DModel``.
        entries: location, shape and dtype of every tensor by diffusers name, in the model's order.
        sinks: the sink tokens ``[..., S, audio width]``, if there are any.
        others: number of tensors of other parts in the same file, by prefix.
        turn: applied to ``(name, tensor)`` as a tensor is read (``rope_layout.with_rope``).
    """

    source: Path
    format: str
    config: dict[str, Any]
    entries: dict[str, Entry]
    sinks: Entry | None = None
    others: Counter[str] = field(default_factory=Counter)
    turn: Callable[[str, Tensor], Tensor] = _as_stored

    def names(self) -> list[str]:
        """Sort the names by file, so that reading them in order opens each file once."""
        return sorted(self.entries, key=lambda name: str(self.entries[name].file))

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Read tensors one by one, so that memory holds a single tensor.

        Args:
            names: diffusers names, read in this order; all tensors by default.

        Yields:
            Name and tensor, as stored or changed by ``turn``.

        Raises:
            WeightsError: if a tensor holds NaN or infinity, or a file has become shorter.
        """
        wanted = self.names() if names is None else list(names)
        for file, group in groupby(wanted, key=lambda name: self.entries[name].file):
            with open_file(file) as opened:
                for name in group:
                    yield name, self.turn(name, read_tensor(opened, self.entries[name]))

    def read_sinks(self) -> Tensor | None:
        """Read the sink tokens ``[S, audio width]``; None if the checkpoint has none."""
        if self.sinks is None:
            return None
        with open_file(self.sinks.file) as opened:
            return read_tensor(opened, self.sinks).flatten(0, -2)

    def core(self, dtype: torch.dtype | None = None) -> LTX2VideoTransformer3DModel:
        """Load the transformer in eval mode.

        It is built on the meta device and its parameters are replaced, so memory holds the weights
        once.

        Args:
            dtype: dtype of the weights in memory; None keeps the stored one.

        Raises:
            WeightsError: if a tensor holds NaN or infinity.
        """
        core = on_meta(self.config)
        state = {name: tensor.to(dtype or tensor.dtype) for name, tensor in self.tensors()}
        core.load_state_dict(state, assign=True)
        return core.eval()


def open_checkpoint(source: Path) -> Checkpoint:
    """Open weights of any format and verify all names, shapes and dtypes from the headers alone.

    Args:
        source: a folder with ``transformer/`` or safetensors files, a ``.safetensors`` file, or the
            index of its shards.

    Returns:
        The checkpoint, no tensor of which has been read.

    Raises:
        WeightsError: if a file is missing or damaged, or a tensor or config key does not fit; the
            message names it, what was expected, and the remedy.
    """
    source = Path(source)
    place = source / "transformer" if (source / "transformer").is_dir() else source
    tensors, metadata = read_headers(place)
    if "proj_in.weight" in tensors:
        found = _diffusers(place, tensors)
    elif f"{TRANSFORMER}patchify_proj.weight" in tensors:
        found = _original(place, tensors, metadata)
    elif f"{_AUTHORS_PREFIX}patchify_proj.weight" in tensors:
        found = _omniforcing(place, tensors)
    else:
        raise WeightsError(
            "weights.no-transformer",
            f"{place} holds no LTX-2 transformer: it begins with "
            f"{min(tensors, default='nothing')!r}; name a diffusers folder, Lightricks' file or "
            "OmniForcing's index",
        )
    return _verified(replace(found, sinks=found.sinks or _sinks_beside(source)))


def _sinks_beside(source: Path) -> Entry | None:
    file = source / SINKS_FILE
    if not file.is_file():
        return None
    kept = _headers(file)[0]
    if "sinks" not in kept or len(kept["sinks"].shape) != 2:
        raise WeightsError(
            "weights.missing-tensor",
            f"{file} must hold sinks [S, audio width], but holds {sorted(kept)}; export it again",
        )
    return kept["sinks"] if kept["sinks"].shape[0] else None


def read_headers(place: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read entries by their keys in the files, and the metadata (empty for an index of shards).

    Args:
        place: a safetensors file, an index of shards, or a folder with one of them.

    Raises:
        WeightsError: if there is none or several, or one is damaged or of unknown quantisation.
    """
    entries, metadata = _headers(place)
    return dequantised(entries, metadata), metadata


def _headers(place: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    if place.name.endswith(_INDEX):
        return _indexed(place), {}
    if place.is_dir():
        return _headers(_inside(place))
    formats = f"a folder, a .safetensors file or a {_INDEX} file of LTX-2 weights"
    if place.suffix != ".safetensors" and not place.exists():
        raise WeightsError("file.missing", f"{place} does not exist; name {formats}")
    if place.suffix in _PICKLES:
        raise WeightsError(
            "weights.pickle",
            f"{place} is a pickle, which can run code when it is opened; "
            "get the weights as safetensors",
        )
    if place.suffix != ".safetensors":
        raise WeightsError(
            "weights.not-safetensors", f"{place} is not a safetensors file; name {formats}"
        )
    return read_header(place)


def _inside(folder: Path) -> Path:
    """Find the one index or safetensors file of a folder; an index wins over its shards."""
    indices, files = sorted(folder.glob(f"*{_INDEX}")), sorted(folder.glob("*.safetensors"))
    found = indices or [file for file in files if file.name != SINKS_FILE]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found[:3])
        raise WeightsError(
            "weights.several-checkpoints",
            f"{folder} holds several checkpoints ({names}) and nothing says which; "
            "name one of the files",
        )
    # The caller refuses a pickle by name, which says more than "no transformer".
    pickles = sorted(file for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        return pickles[0]
    raise WeightsError(
        "weights.no-transformer",
        f"{folder} holds no transformer: there is no .safetensors file in it; "
        "download or export one there",
    )


def _indexed(index: Path) -> dict[str, Entry]:
    values = read_json(index)
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places:
        raise WeightsError(
            "weights.bad-index",
            f"{index} has no weight_map; it is not an index of safetensors: download it again",
        )
    shards: dict[str, dict[str, Entry]] = {}
    for name in sorted(set(map(str, places.values()))):
        file = index.parent / name
        # An index may be downloaded from anywhere: its shards must not lie outside its folder.
        if Path(name).name != name or not file.is_file():
            raise WeightsError(
                "weights.missing-shard",
                f"{index} names the shard {name}, which is not beside it; "
                "copy or download that file too",
            )
        shards[name] = _headers(file)[0]
    lost = [key for key, name in places.items() if key not in shards[name]]
    if lost:
        raise WeightsError(
            "weights.missing-tensor",
            f"{index.parent / places[lost[0]]} lacks {lost[0]}, which the index says it holds; "
            "download both again",
        )
    return {key: shards[name][key] for key, name in places.items()}


def _diffusers(place: Path, tensors: dict[str, Entry]) -> Checkpoint:
    file = (place if place.is_dir() else place.parent) / "config.json"
    config = read_json(file)
    if not isinstance(config, dict):
        raise WeightsError(
            "weights.no-config",
            f"{file} is no config of a model; take the file that was published with the weights",
        )
    return Checkpoint(place, "diffusers", checked(config, str(file)), tensors)


def _original(file: Path, tensors: dict[str, Entry], metadata: dict[str, str]) -> Checkpoint:
    if f"{TRANSFORMER}audio_patchify_proj.weight" not in tensors:
        raise WeightsError(
            "weights.no-sound",
            f"{file} holds a transformer without sound (audio_patchify_proj is missing); "
            "LTX-2 weights are needed",
        )
    others = Counter({part: sum(key.startswith(part) for key in tensors) for part in OTHER_PARTS})
    entries = _renamed(
        {k: e for k, e in tensors.items() if not k.startswith(OTHER_PARTS)}, TRANSFORMER
    )
    try:
        values = dict(json.loads(metadata.get("config", "{}"))["transformer"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            "weights.no-config",
            f"{file} carries no transformer config in its metadata, and the architecture is never "
            "guessed; take the file as Lightricks published it",
        ) from error
    config = from_metadata(
        values, {name: entry.shape for name, entry in entries.items()}, str(file)
    )
    return Checkpoint(file, "original", config, entries, others=+others)


def _omniforcing(place: Path, tensors: dict[str, Entry]) -> Checkpoint:
    entries = _renamed(
        {key: entry for key, entry in tensors.items() if key != _AUTHORS_SINKS}, _AUTHORS_PREFIX
    )
    shapes = {name: entry.shape for name, entry in entries.items()}
    return Checkpoint(
        place,
        "omniforcing",
        of_the_authors(shapes, str(place)),
        entries,
        tensors.get(_AUTHORS_SINKS),
    )


def _renamed(tensors: dict[str, Entry], prefix: str) -> dict[str, Entry]:
    """Rename Lightricks' keys to diffusers names.

    Raises:
        WeightsError: if a key lacks the prefix or is not a Lightricks name.
    """
    entries = {}
    for key, entry in tensors.items():
        name = to_diffusers(key.removeprefix(prefix))
        # Converting back catches keys without the prefix, and names that only diffusers uses, which
        # renaming leaves as they are, so that they could collide with a renamed key.
        if prefix + to_original(name) != key:
            raise WeightsError(
                "weights.unknown-tensor",
                f"{entry.file} holds {key}, which is no part of an LTX-2 model that this version "
                "knows; take the file as its authors published it",
            )
        entries[name] = entry
    return entries


def _verified(found: Checkpoint) -> Checkpoint:
    """Check that the tensors are exactly those of the config; sort them in the model's order."""
    expected = expected_shapes(found.config, str(found.source))
    missing = [name for name in expected if name not in found.entries]
    extra = [name for name in found.entries if name not in expected]
    if missing or extra:
        # Releases differ in hundreds of names, so the first of them alone would explain nothing.
        releases = generation(expected), generation(found.entries)
        if releases[0] != releases[1]:
            raise WeightsError(
                "weights.mixed-releases",
                f"{found.source}: the config describes LTX-{releases[0]} but the tensors are "
                f"LTX-{releases[1]}'s ({(missing + extra)[0]} is "
                f"{'missing' if missing else 'unexpected'}); use config and weights of one release",
            )
        name = (missing or extra)[0]
        told = (
            f"lacks {name} {list(expected[name])}"
            if missing
            else f"holds {name}, which its config has no place for"
        )
        raise WeightsError(
            "weights.wrong-tensors",
            f"{found.source} {told} ({len(missing)} missing, {len(extra)} unexpected, of "
            f"{len(expected)} tensors); download it again or use the config that belongs to it",
        )
    for name, shape in expected.items():
        fits(found.entries[name], shape)
    if found.sinks is not None:
        fits(found.sinks, (*found.sinks.shape[:-1], expected["audio_proj_in.weight"][0]))
    return replace(found, entries={name: found.entries[name] for name in expected})


def fits(entry: Entry, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape than its config's, or of a dtype that is not read."""
    if entry.shape != shape:
        raise WeightsError(
            "weights.wrong-shape",
            f"{entry.file}: tensor {entry.key} has shape {list(entry.shape)}, its config expects "
            f"{list(shape)}; use the config that belongs to these weights",
        )
    if entry.dtype not in DTYPES:
        raise WeightsError(
            "weights.quantised",
            f"{entry.file}: tensor {entry.key} is stored as {entry.dtype}; "
            "quantised weights are not read: take the bf16 file",
        )
