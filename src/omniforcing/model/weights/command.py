"""Inspect LTX-2 weights, and convert them between formats: ``omniforcing weights``."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir

if TYPE_CHECKING:
    from omniforcing.model.weights.checkpoint import Checkpoint
    from omniforcing.model.weights.tensor_file import Entry

STREAMS = ("video", "audio", "cross-modal")


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """Summarise a checkpoint from its headers: release, architecture, parameters, dtypes.

    Returns:
        Values by name, as ``omniforcing weights inspect --json`` prints them; ``bytes`` is the size
        of the transformer, ``parameters`` are counts per stream.
    """
    from omniforcing.model.weights.names import generation, stream

    config, entries = checkpoint.config, checkpoint.entries
    parameters = Counter({name: 0 for name in STREAMS})
    for name, entry in entries.items():
        parameters[stream(name)] += math.prod(entry.shape)
    return {
        "source": str(checkpoint.source),
        "format": checkpoint.format,
        "generation": generation(entries),
        "layers": config["num_layers"],
        "heads": config["num_attention_heads"],
        "head_dim": {
            "video": config["attention_head_dim"],
            "audio": config["audio_attention_head_dim"],
        },
        "rope": config["rope_type"],
        "rope_frequencies": "fp64" if config["rope_double_precision"] else "fp32",
        "timestep_scale": config["timestep_scale_multiplier"],
        "gate_timestep_scale": config["cross_attn_timestep_scale_multiplier"],
        "tensors": len(entries),
        "bytes": _size(checkpoint),
        "dtypes": dict(Counter(entry.dtype for entry in entries.values())),
        "parameters": {**parameters, "total": parameters.total()},
        "sinks": checkpoint.sinks.shape[-2] if checkpoint.sinks else 0,
        "other_parts": dict(checkpoint.others),
    }


def _size(checkpoint: Checkpoint) -> int:
    return sum(entry.size for entry in checkpoint.entries.values())


def table(values: dict[str, Any]) -> str:
    """Format a summary as text, one row per line."""
    dims, counts = values["head_dim"], values["parameters"]
    dtypes = ", ".join(f"{count} {name}" for name, count in values["dtypes"].items())
    rows = {
        "source": f"{values['source']} ({values['format']} format)",
        "generation": f"LTX-{values['generation']}",
        "architecture": f"{values['layers']} layers, {values['heads']} heads "
        f"x {dims['video']} video, x {dims['audio']} audio",
        "RoPE": f"{values['rope']}, {values['rope_frequencies']} frequencies",
        "timesteps": f"sigma x {values['timestep_scale']:g}, "
        f"cross-modal gates x {values['gate_timestep_scale']:g}",
        "tensors": f"{dtypes}; {values['bytes'] / 1e9:.2f} GB",
        "parameters": ", ".join(f"{name} {count / 1e6:,.2f} M" for name, count in counts.items()),
        "sinks": str(values["sinks"] or "none"),
        "other parts": ", ".join(f"{name} {count}" for name, count in values["other_parts"].items())
        or "none",
    }
    return "\n".join(f"{name:<14}{text}" for name, text in rows.items())


def convert(source: Path, destination: Path, action: str, rope: str | None) -> None:
    """Write a transformer in another format, into a new folder that appears when it is complete.

    Args:
        source: weights of any format.
        destination: the new folder.
        action: ``import`` writes diffusers' format, ``export`` Lightricks'.
        rope: RoPE convention to write, ``split`` or ``interleaved``; None keeps the checkpoint's.

    Raises:
        OmniForcingError: if the weights are unfit, the folder exists, or the disk is too full.
    """
    from omniforcing.model.weights.checkpoint import open_checkpoint
    from omniforcing.model.weights.rope_layout import with_rope
    from omniforcing.model.weights.writing import write_diffusers, write_original

    checkpoint = open_checkpoint(source)
    _tell_quantised(checkpoint.entries.values())
    if rope is not None:
        checkpoint = with_rope(checkpoint, rope)
    write = write_diffusers if action == "import" else write_original
    with _new_folder(destination, _size(checkpoint)) as (folder, watch):
        write(checkpoint, folder, watch=watch)


def import_whole(
    source: Path,
    destination: Path,
    more: Sequence[Path],
    text: Path | None,
    copy: bool,
    rope: str | None,
) -> None:
    """Write a whole model as a folder in diffusers format, which appears when it is complete.

    Args:
        source: Lightricks' file, a folder with LTX-2.5's files, a diffusers folder, or a student.
        destination: the new folder.
        more: files or folders with parts that ``source`` lacks.
        text: folder of the text encoder; None for that of a diffusers folder.
        copy: copy the text encoder instead of linking to it.
        rope: RoPE convention of the transformer to write; None keeps its own.

    Raises:
        OmniForcingError: if a part is missing or unfit, the folder exists, or the disk is too full.
    """
    from omniforcing.model.weights.parts.bundle import open_bundle
    from omniforcing.model.weights.parts.gemma_file import GemmaFile
    from omniforcing.model.weights.rope_layout import with_rope

    bundle = open_bundle(source, more, text)
    held = [bundle.transformer.entries, *(part.entries for part in bundle.parts.values())]
    if isinstance(bundle.text, GemmaFile):
        held.append(bundle.text.entries)
    _tell_quantised(entry for entries in held for entry in entries.values())
    if rope is not None:
        bundle = replace(bundle, transformer=with_rope(bundle.transformer, rope))
    with _new_folder(destination, bundle.size) as (folder, watch):
        bundle.write_folder(folder, copy, watch)


def export(source: Path, destination: Path, rope: str | None) -> None:
    """Write weights in Lightricks' format: of a whole folder all but the text encoder.

    Args:
        source: weights of any format.
        destination: the new folder.
        rope: RoPE convention to write; None keeps the checkpoint's.

    Raises:
        OmniForcingError: as ``convert`` does.
    """
    from omniforcing.model.weights.parts.bundle import is_whole, open_bundle
    from omniforcing.model.weights.rope_layout import with_rope

    if not is_whole(source):
        convert(source, destination, "export", rope)
        return
    bundle = open_bundle(source, with_text=False)
    if rope is not None:
        bundle = replace(bundle, transformer=with_rope(bundle.transformer, rope))
    with _new_folder(destination, bundle.size) as (folder, watch):
        bundle.write_originals(folder, watch)


@contextmanager
def _new_folder(destination: Path, size: int) -> Iterator[tuple[Path, Callable[[int], object]]]:
    """Make a folder that appears when it is complete; also yields what shows the progress."""
    from tqdm import tqdm

    check_destination(destination, size)
    with (
        atomic_dir(destination) as folder,
        tqdm(total=size, unit="B", unit_scale=True, desc="writing", file=sys.stderr) as bar,
    ):
        yield folder, bar.update


def _tell_quantised(entries: Iterable[Entry]) -> None:
    counts = Counter(entry.quantised for entry in entries if entry.quantised is not None)
    if counts:
        shown = ", ".join(f"{count} {dtype}" for dtype, count in counts.items())
        print(f"quantised tensors are written as bf16: {shown}", file=sys.stderr)


def merge_loras(source: Path, destination: Path, loras: Sequence[str]) -> None:
    """Write weights with adapters merged into them, in diffusers format, into a new folder.

    Args:
        source: weights of any format.
        destination: the new folder.
        loras: adapters, each as ``FILE`` or ``FILE:SCALE``.

    Raises:
        OmniForcingError: if the weights or an adapter are unfit, the folder exists, or the disk is
            too full.
    """
    from omniforcing.model.weights.checkpoint import open_checkpoint
    from omniforcing.model.weights.lora import merged, read_loras
    from omniforcing.model.weights.writing import write_diffusers

    checkpoint = merged(open_checkpoint(source), read_loras(loras))
    with _new_folder(destination, _size(checkpoint)) as (folder, watch):
        write_diffusers(checkpoint, folder, watch=watch)


def export_lora(source: Path, destination: Path, naming: str) -> int:
    """Write an adapter as a file that diffusers or ComfyUI opens.

    Args:
        source: a stage's folder, or an adapter's file in any naming.
        destination: the new file.
        naming: ``diffusers`` or ``lightricks``.

    Returns:
        The number of layers that it changes.

    Raises:
        OmniForcingError: if it is no adapter, or the file exists or cannot be written.
    """
    from omniforcing.core.files import new_file
    from omniforcing.model.weights.checkpoint import open_checkpoint
    from omniforcing.model.weights.lora import lora_bytes, read_lora

    lora = read_lora(source)
    if lora.facts.get("rope", "split") != "split":
        # Other programs take every adapter for a split one; the base's config knows the heads.
        lora = lora.in_convention(open_checkpoint(source).config, "split")
    if destination.exists():
        raise OmniForcingError(
            "file.exists",
            f"{destination} exists already, and weights are never written over; name a new file",
        )
    with new_file(destination) as file:
        file.write(lora_bytes(lora, naming))
    return len(lora.layers)


def check_destination(destination: Path, size: int) -> None:
    """Check that a folder can be created and has room.

    Args:
        destination: the folder.
        size: bytes that will be written.

    Raises:
        OmniForcingError: if it exists, its parent is not writable, or its disk has less room.
    """
    if destination.exists():
        raise OmniForcingError(
            "file.exists",
            f"{destination} exists already, and weights are never written over; name a new folder",
        )
    parent = next(folder for folder in destination.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OmniForcingError(
            "file.cannot-write",
            f"{destination} cannot be made: {parent} is not a folder that you may write; "
            "name another place",
        )
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OmniForcingError(
            "disk.too-small",
            f"{destination} needs {size / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free; "
            "free some or name another disk",
        )


def inspect(source: Path, values: bool, as_json: bool) -> None:
    """Print a checkpoint's summary.

    Args:
        source: weights of any format.
        values: read every tensor first, which finds NaN and infinity.
        as_json: print JSON instead of a table.

    Raises:
        OmniForcingError: if the weights are unfit.
    """
    from tqdm import tqdm

    from omniforcing.model.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(source)
    if values:
        for _ in tqdm(
            checkpoint.tensors(),
            total=len(checkpoint.entries),
            unit="tensor",
            desc="reading",
            file=sys.stderr,
        ):
            pass
    found = summary(checkpoint)
    print(json.dumps(found) if as_json else table(found))
