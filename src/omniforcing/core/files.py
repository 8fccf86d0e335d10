"""Atomic files and folders, errors of the disk, digests, manifests."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from omniforcing.core.errors import OmniForcingError

MANIFEST = "manifest.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM)


class FileError(OmniForcingError):
    """A file or folder that is missing, altered or unreadable."""


def disk_full(error: BaseException | None) -> bool:
    """Tell whether an error, or one that caused it, says that a disk, quota or file size is full.

    Errors that a distributed checkpoint collects from its workers (``failures``) count too.
    """
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    collected = [failure[0] for failure in getattr(error, "failures", {}).values()]
    return any(map(disk_full, [error.__cause__, error.__context__, *collected]))


def refusal(error: OSError, path: Path | None = None) -> FileError | None:
    """Turn an error of the disk into the error that users see; None if it is another error.

    Args:
        path: what was being written; default: the file that the error names.
    """
    place = path or error.filename
    while_writing = f" while writing {place}" if place else ""
    if error.errno in _FULL:
        return FileError(
            "disk.full",
            f"the disk is full{while_writing} ({error.strerror}); free some space and run the same "
            "command again",
        )
    if error.errno == errno.EROFS:
        return FileError(
            "disk.read-only", f"the disk is read-only{while_writing}; choose another place"
        )
    if error.errno in _FORBIDDEN and place:
        return FileError(
            "file.no-permission",
            f"no permission to use {place} ({error.strerror}); change its permissions or choose "
            "another place",
        )
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name ``path`` in the error if the body meets a full or read-only disk; pass on all others.

    Raises:
        FileError: ``disk.full`` or ``disk.read-only``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, errno.EROFS) or (told := refusal(error, path)) is None:
            raise
        raise told from error


@contextmanager
def _placing(path: Path) -> Iterator[None]:
    """Turn any refusal to make, sync or rename ``path`` into one sentence."""
    try:
        yield
    except OSError as error:
        raise refusal(error, path) or FileError(
            "file.cannot-write",
            f"{path} cannot be written ({error.strerror or error}); choose another place",
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        FileError: if it cannot be made, as where a file has its name.
    """
    with _placing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _writer() -> str:
    """Name this write: machine, process, and a word of its own, since threads may write too."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _is_alive(temporary: Path) -> bool:
    """Tell whether the process that writes ``temporary`` lives on this machine."""
    place, _, pid = temporary.name.rpartition("-")[0].rpartition("-")
    here = place.endswith(f"-{socket.gethostname()}")
    return here and pid.isdigit() and Path("/proc", pid).exists()


def _temporary(path: Path) -> Path:
    """Name a new sibling to write, and remove what dead processes left.

    A writer on another machine is taken for dead: it loses its file and fails.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        if not _is_alive(left):
            remove(left)
    return path.with_name(f".{path.name}.tmp-{_writer()}")


def holds(path: Path, test: Callable[[Path], bool]) -> bool:
    """A test such as ``Path.is_file``; False where the path may not be looked into.

    Python 3.11 raises there.
    """
    try:
        return test(path)
    except OSError:
        return False


def remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Sync a complete file or folder to disk and rename it to ``path``, replacing an older one."""
    for item in [*temporary.rglob("*"), temporary]:
        _sync(item)
    if temporary.is_dir() and path.exists():
        # A folder cannot be renamed onto a full one: move the old one aside first, under a name
        # that is cleared later.
        aside = path.with_name(f".{path.name}.tmp-old-{_writer()}")
        path.replace(aside)
        temporary.replace(path)
        remove(aside)
    else:
        temporary.replace(path)
    _sync(path.parent)


def _is_stream(path: Path) -> bool:
    """Tell whether a path is a pipe, a device or a process's open file, such as /dev/stdout."""
    try:
        if path.is_symlink() and path.absolute().parts[1:2] in (("dev",), ("proc",)):
            return True
        return path.exists() and not path.is_file() and not path.is_dir()
    except OSError:  # a name that is too long, say, which opening it will tell
        return False


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` if the body succeeds, and vanishes if it fails.

    The folder must exist. A pipe or a device is written as it is: a file cannot take its place.

    Raises:
        FileError: if the place cannot be written or the disk is full.
    """
    if _is_stream(path):
        with _placing(path), path.open("ab") as stream:
            yield stream
        return
    with _placing(path):
        temporary = _temporary(path)
        file = temporary.open("wb")
    try:
        with writing(path), file:
            yield file
        with _placing(path):
            publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` if the body succeeds, and vanishes if it fails.

    Raises:
        FileError: if the place cannot be written or the disk is full.
    """
    path = Path(path)
    with _placing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.mkdir()
    try:
        with writing(path):
            yield temporary
        with _placing(path):
            publish(temporary, path)
    finally:
        remove(temporary)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a whole file, and its folder if that is missing; no reader ever sees a part of it.

    Raises:
        FileError: if the place cannot be written or the disk is full.
    """
    path = Path(path)
    with _placing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: sorted keys, two spaces, a newline at the end.

    Raises:
        ValueError: if a number is NaN or infinite, which JSON cannot hold.
    """
    atomic_write(
        path,
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

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


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileError: if it is missing, is not JSON or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise FileError(
            "file.unreadable",
            f"{path} holds a {type(found).__name__} where a json object should be; make it again",
        )
    return found


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p for p in sorted(found)}


def tree_digest(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's relative names and contents.

    Compiled Python is left out.

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
    """Write ``manifest.json``: size and sha256 of every file in a folder.

    Args:
        folder: the folder.
        extra: further entries. They must follow from the content of the folder, because later
            stages take the manifest's hash for that of the folder.

    Returns:
        The manifest.
    """
    listed = {
        name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for name, p in _files(folder).items()
        if name != MANIFEST
    }
    manifest = {"schema": 1, "files": listed, **(extra or {})}
    write_json(folder / MANIFEST, manifest)
    return manifest


def verify_manifest(folder: Path, elsewhere: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Check size and sha256 of every file in a folder's manifest, and return the manifest.

    Args:
        folder: the folder.
        elsewhere: folders in it that lie in another place, each by its name.

    Raises:
        FileError: if a file is missing or altered.
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
        first, *rest = Path(name).parts
        path = (elsewhere or {}).get(first, folder / first).joinpath(*rest)
        if not path.is_file():
            raise FileError(
                "file.missing",
                f"{path} is missing though {MANIFEST} lists it; make or copy the folder again",
            )
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise FileError(
                "file.altered",
                f"{path} is not the file that {MANIFEST} lists (its sha256 differs); "
                "make or copy the folder again",
            )
    return manifest


def folder_digest(folder: Path) -> str:
    """Return a digest that identifies a stage's output.

    It is the sha256 of the manifest if there is one, which is quick, else ``tree_digest``.
    """
    manifest = Path(folder) / MANIFEST
    return sha256_file(manifest) if manifest.is_file() else tree_digest(folder)


def forget_origins(folder: Path) -> None:
    """Remove the path that a model was loaded from from every ``config.json`` in a folder.

    The bytes of an output must not depend on the place where it was made.
    """
    for path in sorted(Path(folder).rglob("config.json")):
        values = read_json(path)
        if values.pop("_name_or_path", None) is not None:
            write_json(path, values)
