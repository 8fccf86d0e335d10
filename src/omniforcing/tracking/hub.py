"""Repositories of the Hugging Face Hub: artifacts fetched into its cache, and published in it.

``huggingface_hub`` does the talking: HF_ENDPOINT names another Hub, HF_TOKEN or ``hf auth login``
the account, HF_HOME the cache, and with HF_HUB_OFFLINE only the cache is used.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from omniforcing.core.errors import OmniForcingError, quoted
from omniforcing.core.files import MANIFEST, read_json, sha256_file

_FORM = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)
_OWN = {".gitattributes"}  # the Hub writes it into every new repository
_FORBIDDEN, _CHANGED = (401, 403), (409, 412)  # of HTTP
_SHOWN = 3  # names of files in a sentence


@dataclass(frozen=True)
class Repository:
    """A model's repository on the Hub.

    Attributes:
        name: ``org/name``.
        revision: branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def named(cls, text: str) -> Repository | None:
        """Read ``org/name`` or ``org/name@revision``; None for anything else."""
        words = _FORM.fullmatch(text)
        return cls(words["name"], words["revision"]) if words else None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def listed_files(folder: Path) -> list[str]:
    """List the files that the manifest of a folder names, and the manifest itself.

    Raises:
        OmniForcingError: if the manifest is missing or damaged, or names a place outside.
    """
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise OmniForcingError(
            "file.empty-manifest", f"{folder / MANIFEST} lists no files; make the folder again"
        )
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise OmniForcingError(
                "hub.foreign-file",
                f"{folder / MANIFEST} lists {quoted(name)}, which lies outside of the folder; "
                "do not use what comes from there",
            )
    return [*files, MANIFEST]


def fetch(repository: Repository) -> Path:
    """Return the folder of an artifact in the Hub's cache; what is missing there is fetched.

    Only files that the manifest names are fetched, and all of one commit. Nothing is verified here.

    Raises:
        OmniForcingError: if there is no such repository or revision, it holds no artifact, or the
            Hub does not answer and the cache lacks a file.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with _answering(repository):
        try:
            found = hf_hub_download(repository.name, MANIFEST, revision=repository.revision)
        except RemoteEntryNotFoundError as error:
            raise OmniForcingError(
                "hub.not-an-artifact",
                f"{repository} on the Hub at {_endpoint()} is not an artifact, it has no "
                f"{MANIFEST}; name a repository that `omniforcing push` made",
            ) from error
        commit = Path(found).parent
        names = [glob.escape(name) for name in listed_files(commit)]
        return Path(snapshot_download(repository.name, revision=commit.name, allow_patterns=names))


def publish(
    folder: Path, names: Sequence[str], repository: Repository, message: str, private: bool
) -> tuple[str, bool]:
    """Publish files of a folder in one commit, in a repository that is new or empty.

    Args:
        folder: the folder.
        names: its files, each relative to the folder.
        repository: where to; it is made if it does not exist.
        message: message of the commit.
        private: whether a new repository is private; otherwise its owner's default counts.

    Returns:
        The commit, and whether it is new: a repository that has these very files stays as it is.

    Raises:
        OmniForcingError: if the repository has other content, or the Hub refuses or does not
            answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _answering(repository):
        try:
            info = api.model_info(repository.name, files_metadata=True)
        except RepositoryNotFoundError:
            api.create_repo(repository.name, private=private or None)
            info = api.model_info(repository.name, files_metadata=True)
        there = {each.rfilename: each for each in info.siblings or () if each.rfilename not in _OWN}
        if there:
            _refuse_other(repository, folder, names, there)
            return str(info.sha), False
        added = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names
        ]
        commit = api.create_commit(
            repository.name, added, commit_message=message, parent_commit=info.sha
        )
    return commit.oid, True


def _refuse_other(
    repository: Repository, folder: Path, names: Sequence[str], there: dict[str, Any]
) -> None:
    """Refuse a repository whose files are not those of the folder."""
    other = sorted(n for n in there if n not in names or not _same(folder / n, there[n]))
    other += [f"no {name}" for name in names if name not in there]
    if other:
        shown = ", ".join(other[:_SHOWN]) + (", ..." if len(other) > _SHOWN else "")
        raise OmniForcingError(
            "hub.other-content",
            f"{repository} on the Hub at {_endpoint()} exists with other content ({shown}); name "
            "a new repository, or delete that one first",
        )


def _same(path: Path, remote: Any) -> bool:
    """Whether a file of a repository, by its size and hash, is a file of this machine."""
    if remote.size != path.stat().st_size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == sha256_file(path))
    content = path.read_bytes()  # only small files are no LFS files
    return bool(remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def _answering(repository: Repository) -> Iterator[None]:
    """Turn every failure of a conversation with the Hub into a sentence.

    Raises:
        OmniForcingError: for all but errors of this machine's own disk.
    """
    from huggingface_hub import errors

    try:
        yield
    except OSError as error:
        if not isinstance(error, errors.HTTPError) and error.errno is not None:
            raise  # of this machine's own disk
        raise _refusal(repository, error) from error
    except (errors.HTTPError, RuntimeError, ValueError) as error:
        # RuntimeError: an upload that failed; ValueError: a name, or a card's front matter.
        raise _refusal(repository, error) from error


def _refusal(repository: Repository, error: BaseException) -> OmniForcingError:
    from huggingface_hub import constants, errors

    place = f"the Hub at {_endpoint()}"
    told = _told(error)
    status = getattr(getattr(told, "response", None), "status_code", None)
    reason = " ".join(str(getattr(told, "server_message", None) or told).split())[:200]
    if isinstance(error, errors.RevisionNotFoundError):
        return OmniForcingError(
            "hub.unknown-revision",
            f"{repository.name} on {place} has no revision {quoted(repository.revision)}; name a "
            "branch, a tag or a commit of it",
        )
    unknown = isinstance(error, errors.RepositoryNotFoundError)
    if isinstance(error, errors.GatedRepoError) or (status in _FORBIDDEN and not unknown):
        return OmniForcingError(
            "hub.no-permission",
            f"{place} does not let this account use {repository} ({reason}); accept its terms on "
            "its page, or give a token that may by HF_TOKEN or `hf auth login`",
        )
    if unknown:
        return OmniForcingError(
            "hub.unknown-repository",
            f"there is no folder {repository} here, and {place} has no repository of this name for "
            "this account; check the name, or give a token by HF_TOKEN or `hf auth login`",
        )
    if status in _CHANGED:
        return OmniForcingError(
            "hub.changed",
            f"{repository} on {place} was changed at the same time ({reason}); look at it, and "
            "give the same command again",
        )
    if constants.is_offline_mode():
        return OmniForcingError(
            "hub.offline",
            f"there is no folder {repository} here, and the Hub's cache in "
            f"{constants.HF_HUB_CACHE} lacks it or some of it; unset HF_HUB_OFFLINE to ask the Hub",
        )
    if isinstance(error, ValueError) or status == 400:
        return OmniForcingError(
            "hub.refused", f"{place} does not take {repository} ({reason}); mend that first"
        )
    return OmniForcingError(
        "hub.no-answer",
        f"there is no folder {repository} here, and {place} does not answer ({reason}); check the "
        "network, HF_ENDPOINT, or copy the folder here",
    )


def _told(error: BaseException) -> BaseException:
    """The answer of the Hub beneath errors that only say that something failed, or what was met."""
    cause = error.__cause__
    return error if cause is None or hasattr(error, "response") else _told(cause)
