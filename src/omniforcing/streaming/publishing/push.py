"""Hand an artifact on: ``omniforcing push`` into a folder or the Hub, ``pull`` into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import MANIFEST, FileError, atomic_dir, sha256_file, verify_manifest
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.publishing.card import check_card
from omniforcing.tracking.hub import Repository, listed_files, publish


def push(source: str, target: str, private: bool = False) -> str:
    """Publish an artifact in a folder or in a repository of the Hub, whole or not at all.

    The copy is the same artifact, with the same digest. A target that holds it already stays as it
    is.

    Args:
        source: what ``Artifact.open`` takes.
        target: ``ORG/NAME`` on the Hub, unless there is such a folder; anything else is a folder.
        private: whether a new repository is private.

    Returns:
        A line that says what was done.

    Raises:
        OmniForcingError: if the artifact is not whole or its card names no licence, the target has
            other content, or the Hub refuses or does not answer.
    """
    folder = Artifact.open(source).folder
    check_card(folder)
    names, digest = listed_files(folder), sha256_file(folder / MANIFEST)[:12]
    repository = None if Path(target).exists() else Repository.named(target)
    if repository is None:
        return _line(digest, target, _copy(folder, names, Path(target)))
    if repository.revision:
        raise OmniForcingError(
            "option.malformed",
            f"{target} names a revision, and artifacts are pushed to the main branch; leave out "
            f"@{repository.revision}",
        )
    message = f"Artifact {digest} of omniforcing"
    commit, new = publish(folder, names, repository, message, private)
    return _line(digest, f"{target}, commit {commit[:12]}", new)


def pull(source: str, target: Path) -> str:
    """Copy an artifact into a folder, whole or not at all.

    Args:
        source: what ``Artifact.open`` takes.
        target: a folder that is new or empty, or holds this artifact already.

    Returns:
        A line that says what was done.

    Raises:
        OmniForcingError: if there is no such artifact, it is not whole, or the folder has other
            content.
    """
    folder = Artifact.open(source).folder
    new = _copy(folder, listed_files(folder), target)
    return _line(sha256_file(folder / MANIFEST)[:12], str(target), new)


def _line(digest: str, place: str, new: bool) -> str:
    return f"{place}: artifact {digest}" + ("" if new else ", which was there already")


def _copy(folder: Path, names: Sequence[str], target: Path) -> bool:
    """Copy files into a folder that is new or empty; False if it holds this artifact already."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        _refuse_other(folder, target)
        return False
    with atomic_dir(target) as unfinished:
        for name in names:
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, unfinished / name)
    return True


def _refuse_other(folder: Path, target: Path) -> None:
    try:
        verify_manifest(target)
        same = sha256_file(target / MANIFEST) == sha256_file(folder / MANIFEST)
    except FileError:
        same = False
    if not same:
        raise OmniForcingError(
            "publishing.other-content",
            f"{target} exists with other content than this artifact; name a new folder, or remove "
            "that one first",
        )
