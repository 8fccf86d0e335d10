"""The kept student: preset ``pocket``'s artifact, which ships with the package.

``omniforcing/assets/pocket/student`` holds the artifact as stage ``export`` wrote it, its manifest
included, without the codec and text encoder, which the kept foundation holds already; so it is the
same artifact, with the same digest. ``student.json`` beside it names digest, config, seed, commit,
metrics and the sha256 of every file. ``omniforcing run --preset pocket --keep`` makes both.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omniforcing.core.config import Section, to_dict
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import (
    MANIFEST,
    FileError,
    atomic_dir,
    read_json,
    sha256_file,
    verify_manifest,
    write_json,
)
from omniforcing.pocket import foundation

MOST_BYTES = 30_000_000  # of all kept files together: they lie in git and in every wheel
_REMEDY = (
    "install omniforcing again, or name an artifact with --artifact "
    "(in a checkout, `omniforcing run --preset pocket --keep` makes it anew)"
)


def student_folder() -> Path:
    """Folder of the kept student."""
    return foundation.KEPT / "student"


def codec_folder() -> Path:
    """Folder of the codec that the kept student streams with, its text encoder in ``text``."""
    return foundation.KEPT / "codec"


def _record_file() -> Path:
    return student_folder().with_suffix(".json")


def _shared() -> dict[str, Path]:
    """Parts of the artifact that the kept codec holds, each with its place."""
    return {"codec": codec_folder(), "text": codec_folder() / "text"}


@contextmanager
def _with_remedy() -> Iterator[None]:
    """Say of a file that is missing or damaged that it is the kept student's, and what to do."""
    try:
        yield
    except FileError as error:
        fact = error.message.partition(";")[0]
        raise FileError(
            "pocket.damaged-student", f"the kept student is damaged, {fact}; {_REMEDY}"
        ) from error


def read_record() -> dict[str, Any]:
    """Read what is known of the kept student: digest, config, seed, commit, metrics, files.

    Raises:
        FileError: if the package keeps none, or the record is damaged.
    """
    if not student_folder().is_dir():
        raise FileError(
            "file.missing",
            f"the package keeps no student, {student_folder()} is missing; {_REMEDY}",
        )
    with _with_remedy():
        record = read_json(_record_file())
    if not isinstance(record, dict) or not {"artifact", "git_commit"} <= record.keys():
        raise FileError(
            "pocket.damaged-student", f"{_record_file()} does not describe a student; {_REMEDY}"
        )
    return record


def describe_student(preset: str) -> str:
    """Name the kept student of a preset, with the beginnings of its digest and commit."""
    record = read_record()
    artifact, commit = record["artifact"][:12], record["git_commit"][:12]
    return f"the kept student of preset {preset} (artifact {artifact}, commit {commit})"


def check_student() -> dict[str, Any]:
    """Verify every file of the kept student, and return its record.

    Raises:
        FileError: if the package keeps none, or a file is missing or altered.
    """
    record = read_record()
    with _with_remedy():
        verify_manifest(student_folder(), _shared())
    if sha256_file(student_folder() / MANIFEST) != record["artifact"]:
        raise FileError(
            "pocket.damaged-student",
            f"{student_folder() / MANIFEST} is not the one that {_record_file()} names; {_REMEDY}",
        )
    return record


def publish(data: Path, sections: Mapping[str, Section], seed: int, commit: str) -> None:
    """Copy an exported artifact into the package, with its record.

    Args:
        data: folder of the preset's stages.
        sections: configuration sections that shaped the student, by name.
        seed: seed that it was trained with.
        commit: git commit of the code that trained it.

    Raises:
        OmniForcingError: if the artifact is not whole, has another codec than the kept one, or the
            kept files would take more than ``MOST_BYTES``.
    """
    artifact = data / "artifact"
    files: dict[str, dict[str, Any]] = verify_manifest(artifact)["files"]
    own = [name for name in files if Path(name).parts[0] not in _shared()]
    for name in files.keys() - set(own):
        _refuse_other_codec(artifact, name)
    _refuse_too_much([artifact / name for name in (*own, MANIFEST)])
    record = {
        "artifact": sha256_file(artifact / MANIFEST),
        "files": {name: files[name]["sha256"] for name in files},
        "config": {name: to_dict(section) for name, section in sections.items()},
        "seed": seed,
        "git_commit": commit,
        "metrics": {
            stage: read_json(data / f"{stage}.metrics.json") for stage in ("evaluate", "export")
        },
    }
    with atomic_dir(student_folder()) as folder:
        for name in (*own, MANIFEST):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact / name, folder / name)
    write_json(_record_file(), record)


def _refuse_other_codec(artifact: Path, name: str) -> None:
    part, *rest = Path(name).parts
    kept = _shared()[part].joinpath(*rest)
    if not kept.is_file() or sha256_file(kept) != sha256_file(artifact / name):
        raise OmniForcingError(
            "pocket.other-codec",
            f"{artifact / name} is not the file {kept} that the package keeps; train the student "
            "with codec.source=kept, as preset pocket does, or keep its codec with --foundation",
        )


def _refuse_too_much(new: list[Path]) -> None:
    foundation_files = [
        path
        for path in foundation.KEPT.rglob("*")
        if path.is_file() and student_folder() not in path.parents
    ]
    total = sum(path.stat().st_size for path in [*foundation_files, *new])
    if total > MOST_BYTES:
        raise OmniForcingError(
            "pocket.too-large",
            f"all kept files would take {total:,} bytes, and the package keeps at most "
            f"{MOST_BYTES:,}; set export.precision=bf16, or make the student smaller",
        )
