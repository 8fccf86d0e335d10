"""Files that are either whole or absent: atomic writes, digests and manifests. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError

MANIFEST = "manifest.json"


class FileError(OmniForcingError):
    """A file or folder that is missing, altered or unreadable; names it and says what to do."""


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid: str) -> bool:
    return pid.isdigit() and Path("/proc").is_dir() and Path("/proc", pid).exists()


def _temporary(path: Path) -> Path:
    """A sibling name of our own; what killed processes left under such names is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        if not _alive(stale.name.rpartition("-")[2]):
            remove(stale)
    return path.parent / f".{path.name}.tmp-{os.getpid()}"


def remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes ``path`` if the body succeeds, and vanishes if it fails."""
    path = Path(path)
    temporary = _temporary(path)
    remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for item in [*temporary.rglob("*"), temporary]:
            sync(item)
        if path.exists():
            # A folder cannot be renamed onto a full one: move the old one aside first, under a name that is cleared later.
            aside = path.parent / f".{path.name}.tmp-old-{os.getpid()}"
            path.replace(aside)
            temporary.replace(path)
            remove(aside)
        else:
            temporary.replace(path)
        sync(path.parent)
    except BaseException:
        remove(temporary)
        raise


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a whole file through a temporary sibling, so that no reader ever sees a part of it."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        remove(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write json atomically: sorted keys, two spaces, one newline at the end. NaN is refused, it is not json."""
    atomic_write(
        path,
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    )


def read_json(path: Path) -> Any:
    """Read a json file.

    Raises:
        FileError: if it is missing or is not json.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(
            "file.missing", f"{path} is missing; run the stage that writes it"
        ) from error
    except (ValueError, OSError) as error:
        raise FileError("file.unreadable", f"{path} is not readable json: {error}") from error


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p for p in sorted(found)}


def tree_digest(path: Path) -> str:
    """Hex sha256 of a file, or of a folder's relative names and contents (compiled Python left out).

    Raises:
        FileError: if the path does not exist.
    """
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise FileError("file.missing", f"{path} does not exist; run the stage that writes it")
    lines = [f"{sha256_file(p)}  {name}\n" for name, p in sorted(_files(path).items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_manifest(folder: Path, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write ``manifest.json``: bytes and sha256 of every file in the folder, and whatever ``extra`` adds.

    Only put in ``extra`` what follows from the content: later stages take the manifest's hash for that of the folder.
    """
    listed = {
        name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for name, p in _files(folder).items()
        if name != MANIFEST
    }
    manifest = {"schema": 1, "files": listed, **(extra or {})}
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Check every file that the folder's manifest lists, and return the manifest.

    Raises:
        FileError: naming the first file that is missing or altered.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(
            "file.not-a-folder", f"{folder} is not a folder; give the folder that holds {MANIFEST}"
        )
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise FileError(
            "file.empty-manifest", f"{folder / MANIFEST} lists no files; make the folder again"
        )
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise FileError(
                "file.missing",
                f"{path} is missing though {MANIFEST} lists it; make or copy the folder again",
            )
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise FileError(
                "file.altered",
                f"{path} is not the file that {MANIFEST} lists (its sha256 differs); make or copy the folder again",
            )
    return manifest


def folder_digest(folder: Path) -> str:
    """What identifies a stage's output: its manifest's sha256 if it has one (cheap), else ``tree_digest``."""
    manifest = Path(folder) / MANIFEST
    return sha256_file(manifest) if manifest.is_file() else tree_digest(folder)


def forget_origins(folder: Path) -> None:
    """Take out of every model config in a folder the path it was loaded from: output must not depend on where it was made."""
    for path in sorted(Path(folder).rglob("config.json")):
        values = read_json(path)
        if values.pop("_name_or_path", None) is not None:
            write_json(path, values)
