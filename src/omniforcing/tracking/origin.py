"""Where an artifact comes from: a folder, MLflow's registry, or the Hub."""

from __future__ import annotations

from pathlib import Path

from omniforcing.tracking.hub import Repository, fetch
from omniforcing.tracking.registry import PREFIX, registered_artifact


def artifact_folder(name: Path | str) -> Path:
    """Return the folder of an artifact on this machine, after fetching what is not here yet.

    A folder that exists comes before a repository of the same name. Nothing is verified.

    Args:
        name: a folder; ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in MLflow; or
            ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the Hub.

    Raises:
        OmniForcingError: if registry or Hub have no such model, or do not answer. A folder that is
            missing is returned as it is.
    """
    if str(name).startswith(PREFIX):
        return registered_artifact(str(name))
    repository = None if Path(name).exists() else Repository.named(str(name))
    return fetch(repository) if repository else Path(name)
