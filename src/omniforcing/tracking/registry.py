"""MLflow's model registry: versions by number or alias, and the artifacts that they hold."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from omniforcing.core.config import digest, project_root
from omniforcing.core.environment import decline_telemetry
from omniforcing.core.errors import OmniForcingError, did_you_mean, quoted
from omniforcing.core.files import atomic_dir
from omniforcing.tracking.description import NOTE
from omniforcing.tracking.store import (
    UPLOAD,
    answering,
    check_host,
    shown,
    store_folder,
    tracking_uri,
)

PREFIX = "models:/"
EVALUATION = "evaluation"  # artifact path of the tables of an exported model's evaluation
_FORM = re.compile(r"models:/+(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: name of the model.
        number: the version.
        run_id: run of stage export that logged it.
        tags: its tags.
    """

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}/{self.number}"


class Registry:
    """The model registry of an MLflow store.

    Args:
        uri: address of the store.
        client: an ``MlflowClient`` of it.
    """

    def __init__(self, uri: str, client: Any) -> None:
        self.uri, self.client = uri, client

    @classmethod
    def at(cls, uri: str) -> Registry:
        """Connect to a store by its address, and change nothing there.

        Raises:
            OmniForcingError: if it does not answer.
        """
        decline_telemetry()
        from mlflow import MlflowClient

        check_host(uri)
        with answering(uri):
            return cls(uri, MlflowClient(uri))

    def find(self, name: str) -> Version:
        """Find a version by ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

        Raises:
            OmniForcingError: for another form, or if the model, the alias or the version is not
                there, or the store does not answer.
        """
        words = _FORM.fullmatch(name)
        if not words:
            raise OmniForcingError(
                "tracking.malformed-model",
                f"{quoted(name)} names no registered model; write models:/NAME@ALIAS or "
                "models:/NAME/VERSION",
            )
        model = words["name"]
        aliases = self.aliases(model)
        if aliases is None:
            raise self._unknown(f"has no model {model!r}", model, self._names())
        number = words["version"]
        if number is None:
            number = aliases.get(words["alias"])
            if number is None:
                what = f"has no alias {words['alias']!r} of the model {model!r}"
                raise self._unknown(what, words["alias"], aliases)
        return self.version(model, str(number))

    def version(self, model: str, number: str) -> Version:
        """Return a version of a model.

        Raises:
            OmniForcingError: if there is none, or the store does not answer.
        """
        found = self._ask(lambda: self.client.get_model_version(model, number))
        if found is None:
            raise self._unknown(f"has no version {number} of the model {model!r}", "", ())
        return _version(found)

    def aliases(self, model: str) -> dict[str, str] | None:
        """Return aliases of a model with the versions that hold them; None without the model."""
        found = self._ask(lambda: self.client.get_registered_model(model))
        return None if found is None else {k: str(v) for k, v in found.aliases.items()}

    def version_of_run(self, model: str, run_id: str) -> Version | None:
        """Return the version of a model that a run logged; None if it was not registered."""
        with answering(self.uri):
            found = self.client.search_model_versions(f"run_id = '{run_id}'")
        return next((_version(each) for each in found if each.name == model), None)

    def register(self, model: str, run_id: str) -> Version:
        """Register the model that a run of stage export logged.

        Raises:
            OmniForcingError: if the store does not answer.
        """
        import mlflow

        with answering(self.uri, UPLOAD):
            experiment = self.client.get_run(run_id).info.experiment_id
            wanted = f"source_run_id = '{run_id}' AND name = 'model'"
            logged = list(self.client.search_logged_models([experiment], wanted))
            if not logged:
                raise OmniForcingError(
                    "tracking.model-without-artifact",
                    f"run {run_id} of MLflow at {shown(self.uri)} has no logged model; run stage "
                    "export again",
                )
            version = _version(mlflow.register_model(logged[0].model_uri, model))
            text = logged[0].tags.get(NOTE)  # models of older exports have none
            if text:
                self.client.update_model_version(model, version.number, text)
                if version.number == "1":
                    self.client.update_registered_model(model, text)
            return version

    def describe_by(self, version: Version) -> None:
        """Let MLflow's page of a model show the description of one of its versions.

        Raises:
            OmniForcingError: if the store does not answer.
        """
        with answering(self.uri):
            text = self.client.get_model_version(version.name, version.number).description
            if text:
                self.client.update_registered_model(version.name, text)

    def evaluation(self, run_id: str, folder: Path) -> Path:
        """Copy the evaluation that a run of stage export logged into a folder.

        Raises:
            OmniForcingError: if it logged none, or the store does not answer.
        """
        with answering(self.uri, UPLOAD):
            if not run_id or not self.client.list_artifacts(run_id, EVALUATION):
                raise OmniForcingError(
                    "tracking.no-evaluation",
                    f"{f'run {run_id}' if run_id else 'a model without a run'} of MLflow at "
                    f"{shown(self.uri)} holds no evaluation of the model that it exported; run "
                    "stage export again, which logs it, or if it is the champion's, take the alias "
                    "from it in MLflow",
                )
            folder.mkdir(parents=True)
            return Path(self.client.download_artifacts(run_id, EVALUATION, str(folder)))

    def artifact(self, version: Version) -> Path:
        """Return the artifact folder of a version; one of another machine is copied here once.

        Raises:
            OmniForcingError: if it holds none, or the store does not answer.
        """
        with answering(self.uri, UPLOAD):
            uri = self.client.get_model_version_download_uri(version.name, version.number)
            folder = _local_folder(uri) or self._copied(version, uri)
        artifact = _artifact_of(folder)
        if artifact is None:
            raise OmniForcingError(
                "tracking.model-without-artifact",
                f"{version} of MLflow at {shown(self.uri)} has no artifact of ours at "
                f"{shown(uri)}; run stage export again",
            )
        return artifact

    def _copied(self, version: Version, uri: str) -> Path:
        """Copy a model's files from the store into this user's cache, if they are not there."""
        from mlflow.artifacts import download_artifacts

        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        known = digest([self.uri, version.name, version.number, uri])[:16]
        folder = home / "omniforcing" / "models" / known
        if not folder.is_dir():
            with atomic_dir(folder) as unfinished:
                download_artifacts(
                    artifact_uri=uri, dst_path=str(unfinished), tracking_uri=self.uri
                )
        return folder

    def _names(self) -> list[str]:
        with answering(self.uri):
            return [model.name for model in self.client.search_registered_models()]

    def _ask(self, request: Callable[[], Any]) -> Any:
        """Return what a request finds; None if there is no such thing."""
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            try:
                return request()
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> OmniForcingError:
        names = list(known)
        listed = f" (there are: {', '.join(names)})" if names else ""
        return OmniForcingError(
            "tracking.unknown-model",
            f"MLflow at {shown(self.uri)} {what}{listed}{did_you_mean(name, names)}; "
            "`omniforcing release` registers models, and MLFLOW_TRACKING_URI names another store",
        )


def registered_artifact(name: str) -> Path:
    """Return the artifact folder of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    The store is that of MLFLOW_TRACKING_URI, or else the checkout's. Nothing is verified here:
    ``Artifact.open`` checks the manifest.

    Raises:
        OmniForcingError: if there is no such model, alias or version, it holds no artifact, or the
            store does not answer.
    """
    registry = Registry.at(store_of(name))
    return registry.artifact(registry.find(name))


def store_of(name: str) -> str:
    """Return the address of the store that holds a registered model.

    It is that of MLFLOW_TRACKING_URI, or else the checkout's.

    Raises:
        OmniForcingError: if the checkout has none.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    root = project_root()
    database = store_folder(root) / "mlflow.db"
    if not database.is_file():
        raise OmniForcingError(
            "tracking.no-store",
            f"{database} is missing, so there is no {quoted(name)}; run the pipeline, or name "
            "a store by MLFLOW_TRACKING_URI",
        )
    return tracking_uri(root)


def is_alias(name: str) -> bool:
    """Whether a name is ``models:/NAME@ALIAS``."""
    words = _FORM.fullmatch(name)
    return words is not None and words["alias"] is not None


def _version(found: Any) -> Version:
    return Version(found.name, str(found.version), found.run_id, dict(found.tags))


def _local_folder(uri: str) -> Path | None:
    """Folder of a model that lies on this machine; None for an address of another store."""
    url = urlsplit(uri)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return None if url.scheme else Path(uri)


def _artifact_of(folder: Path) -> Path | None:
    """Artifact folder of a logged model, as its ``MLmodel`` says; None without one."""
    from yaml import YAMLError, safe_load

    # A download may lie in a folder of the store's own name.
    for file in (*folder.glob("MLmodel"), *folder.glob("*/MLmodel")):
        try:
            model = safe_load(file.read_text(encoding="utf-8"))
            return (
                file.parent / model["flavors"]["python_function"]["artifacts"]["artifact"]["path"]
            )
        except (OSError, YAMLError, KeyError, TypeError):
            continue
    return None
