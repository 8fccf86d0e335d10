"""WebDataset tars with an index: deterministic bytes, complete or absent.

webdataset reads a tar that was cut off between two members as if it were complete. The index beside
each tar (``train-000000.json`` for ``train-000000.tar``) holds number of samples, bytes, sha256 and
what its writer adds, so that readers notice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import (
    MANIFEST,
    FileError,
    new_file,
    read_json_object,
    sha256_file,
    write_json,
)
from omniforcing.media.format import ClipFormat

SCHEMA = 1
_AGAIN = "make the folder again with its stage, or copy it again"


def dumps(value: Any) -> str:
    """Write JSON sorted and without spaces, so that equal values are equal bytes."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )


def write_tar(
    path: Path, samples: Iterable[dict[str, Any]], extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write samples to a tar, then its index.

    The tar appears when it is complete and the index after it, so an index vouches for its tar.

    Args:
        path: the tar.
        samples: dictionaries of ``__key__`` (without dots) and members by suffix: bytes, text, or
            any JSON value for ``json``.
        extra: further entries of the index; read after the last sample, so that the generator of
            the samples may fill it.

    Returns:
        The index.

    Raises:
        FileError: if the disk is full; nothing is left behind.
    """
    from webdataset import TarWriter

    count = 0
    with new_file(path) as file, TarWriter(file, mtime=0, encoder=_encode) as tar:
        for sample in samples:
            tar.write(sample)
            count += 1
    counted = {
        "schema": SCHEMA,
        "n": count,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }
    index = {**(extra or {}), **counted}
    write_json(path.with_suffix(".json"), index)
    return index


def copy_tar(
    path: Path, target: Path, extra: dict[str, Any], members: Set[str], left_out: Set[str]
) -> dict[str, Any]:
    """Write a tar again without some of its samples, then the new index.

    Args:
        path: the tar.
        target: the new tar.
        extra: further entries of the new index.
        members: suffixes of the members that every sample has.
        left_out: keys of the samples to leave out.

    Returns:
        The new index.

    Raises:
        FileError: if ``path`` is damaged, or the disk is full.
    """
    kept = (
        {name: sample[name] for name in ("__key__", *sorted(members))}
        for sample in read_tar(path, read_index(path), members)
        if sample["__key__"] not in left_out
    )
    return write_tar(target, kept, extra)


def _encode(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if name == "__key__" else _as_bytes(value) for name, value in sample.items()
    }


def _as_bytes(value: Any) -> bytes:
    return (
        value
        if isinstance(value, bytes)
        else (value if isinstance(value, str) else dumps(value)).encode()
    )


def require_kind(folder: Path, kind: str) -> dict[str, Any]:
    """Read the manifest of a stage's output folder.

    Args:
        folder: the folder.
        kind: stage that must have written it: clips, shards, latents or trajectories.

    Raises:
        OmniForcingError: if the folder is of another kind.
    """
    manifest = read_json_object(folder / MANIFEST)
    if manifest.get("kind") != kind:
        found = manifest.get("kind", "something else")
        raise OmniForcingError(
            "data.wrong-folder",
            f"{folder} holds {found}, not {kind}; give the output folder of the stage {kind}",
        )
    return manifest


def shard_form(folder: Path) -> ClipFormat:
    """Read size and length of the clips in a shard folder.

    Raises:
        OmniForcingError: if the folder is not an output of stage shards.
    """
    manifest = require_kind(folder, "shards")
    try:
        return ClipFormat(**manifest["form"])
    except (KeyError, TypeError) as error:
        raise OmniForcingError(
            "data.damaged-manifest",
            f"{folder / MANIFEST} does not say of what size and length the clips are; "
            "run the stage shards again",
        ) from error


def read_index(path: Path) -> dict[str, Any]:
    """Read the index of a tar.

    Raises:
        FileError: if it is missing or not JSON.
    """
    return read_json_object(path.with_suffix(".json"))


def indices(folder: Path, kind: str, split: str | None = None) -> dict[Path, dict[str, Any]]:
    """Read the indices of a folder's tars, in order, of one split or of all.

    Raises:
        OmniForcingError: if the folder is of another kind or holds no such tar, or a tar is missing
            or has another size than its index says.
    """
    begin = f"{split}-" if split else ""
    listed = sorted(require_kind(folder, kind)["files"])
    found = {
        folder / n: read_index(folder / n)
        for n in listed
        if n.endswith(".tar") and n.startswith(begin)
    }
    if not found:
        raise FileError(
            "data.no-shards",
            f"{folder} holds no shard of the split {split or 'train, heldout or duets'}; {_AGAIN}",
        )
    for path, index in found.items():
        if not path.is_file():
            raise FileError("file.missing", f"shard {path} is missing; {_AGAIN}")
        if path.stat().st_size != index["bytes"]:
            raise FileError(
                "data.damaged-shard",
                f"shard {path} has {path.stat().st_size} bytes where its index says "
                f"{index['bytes']}; {_AGAIN}",
            )
    return found


def read_tar(path: Path, index: dict[str, Any], members: Set[str]) -> Iterator[dict[str, Any]]:
    """Yield the samples of a tar in order: ``__key__`` and the bytes of each member.

    Raises:
        FileError: if the tar is damaged, a sample lacks a member, or the number of samples differs
            from the index.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    count = 0
    with path.open("rb") as file:
        samples = group_by_keys(tar_file_expander([{"url": str(path), "stream": file}]))
        while (sample := _next(path, samples, count)) is not None:
            lacking = sorted(members - sample.keys())
            if lacking:
                raise FileError(
                    "data.damaged-shard",
                    f"shard {path}: sample {sample['__key__']} lacks its .{lacking[0]}; {_AGAIN}",
                )
            count += 1
            yield sample
    if count != index["n"]:
        raise FileError(
            "data.damaged-shard",
            f"shard {path} holds {count} samples where its index says {index['n']}; {_AGAIN}",
        )


def _next(path: Path, samples: Iterator[dict[str, Any]], count: int) -> dict[str, Any] | None:
    try:
        return next(samples, None)
    except Exception as error:  # tarfile and webdataset raise many kinds for a damaged file
        raise FileError(
            "data.damaged-shard",
            f"shard {path} is damaged after sample {count} ({error.args[0]}); {_AGAIN}",
        ) from error
