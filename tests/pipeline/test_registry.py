"""Artifacts of MLflow's registry: opened by alias and version, copied once, mistakes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from omniforcing.cli import main
from omniforcing.core.environment import DATA_ROOT_VARIABLE
from omniforcing.core.files import folder_digest
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.declaration import read_declaration
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.export import log_model
from omniforcing.pipeline.tracking import EXPERIMENT, Run
from omniforcing.streaming.artifact import Artifact, write_artifact
from omniforcing.streaming.engine import Engine
from omniforcing.tracking.description import LONGEST, NOTE, page_text
from omniforcing.tracking.registry import Registry
from tests.support.answering import black_hole
from tests.support.ray_cluster import ROOT
from tests.support.refusals import refused, refuses
from tests.support.releases import log_export, open_registry, save_model
from tests.support.tiny_artifact import METRICS, make_settings, write_parts

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder / "student", folder / "codec")
    target = folder / "artifact"
    target.mkdir()
    return write_artifact(target, folder / "student", folder / "codec", make_settings(), METRICS)


@pytest.fixture(scope="module")
def model(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), artifact.folder)


@pytest.fixture
def registry(project: Path, model: Path) -> Registry:
    """A registry with one version of the model ``tiny``, which is champion."""
    found = open_registry(project)
    found.register("tiny", log_export(found.client, None, model))
    found.client.set_registered_model_alias("tiny", "champion", "1")
    return found


def test_an_artifact_opens_by_alias_and_by_version(registry: Registry, artifact: Artifact) -> None:
    found = registry.artifact(registry.find("models:/tiny/1"))
    assert folder_digest(found) == folder_digest(artifact.folder)
    engine = Engine("models:/tiny@champion")
    assert engine.artifact.folder == found and engine.settings == artifact.settings
    assert Artifact.open(Path("models:/tiny@champion")).folder == found  # as a command has it


def test_a_registered_artifact_is_verified(registry: Registry) -> None:
    spoilt = registry.artifact(registry.find("models:/tiny/1")) / "streaming.json"
    spoilt.write_text(spoilt.read_text() + " ")
    with refuses("file.altered", spoilt):
        Artifact.open("models:/tiny@champion")


@pytest.mark.parametrize(
    ("name", "code", "fact"),
    [
        ("models:/tiny@champin", "tracking.unknown-model", "'champion'"),
        ("models:/tinny@champion", "tracking.unknown-model", "'tiny'"),
        ("models:/tiny/7", "tracking.unknown-model", "version 7"),
        ("models:/tiny", "tracking.malformed-model", "models:/NAME@ALIAS"),
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_model_that_is_not_there_is_one_sentence(
    name: str, code: str, fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["stream", "--prompt", "a", "--out", "a.mp4"], ["serve", "--port", "0"]):
        with pytest.raises(SystemExit) as end:
            main([*words, "--artifact", name])
        assert end.value.code == 2
        refused(capsys.readouterr().err, code, fact)


def test_a_checkout_without_a_store_is_one_sentence(
    project: Path,
) -> None:
    (project / "mlflow.db").unlink()
    with refuses("tracking.no-store", project / "mlflow.db", "MLFLOW_TRACKING_URI"):
        Artifact.open("models:/tiny@champion")
    assert not (project / "mlflow.db").exists()


def test_a_model_whose_files_are_gone_is_one_sentence(registry: Registry, project: Path) -> None:
    shutil.rmtree(project / "mlruns")
    with refuses("tracking.model-without-artifact", "models:/tiny/1"):
        registry.artifact(registry.find("models:/tiny@champion"))


def test_a_registry_that_is_down_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with black_hole() as silent:
        for url in (silent, "http://127.0.0.1:1", "postgresql://127.0.0.1:1/runs"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            with refuses("tracking.no-mlflow", url):
                Artifact.open("models:/tiny@champion")
    assert not (project / ".work").exists()


def test_without_mlflow_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SystemExit):
        main(["serve", "--port", "0", "--artifact", "models:/tiny@champion"])
    refused(capsys.readouterr().err, "package.missing", "mlflow", "omniforcing[pipeline]")


# --- what MLflow's pages show ---


def test_an_exported_model_has_its_card_a_sample_a_signature_and_an_example(
    project: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.models import get_model_info

    client = open_registry(project).client
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(project))
    config = load_config(["preset=smoke", "export.registered_model=tiny"], ROOT)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    run_id = client.create_run(experiment).info.run_id
    declared = read_declaration("export", ROOT, "smoke")
    stage = Stage("export", config, ROOT, declared, Path(), Run(client, run_id))
    shutil.copytree(artifact.folder, stage.folder)
    log_model(stage)
    info = get_model_info("models:/tiny/1")
    assert info.signature.inputs.input_names() == ["prompt", "seconds", "seed"]
    assert info.signature.outputs.input_names() == ["mp4"]
    assert client.get_logged_model(info.model_id).tags[NOTE].startswith("# omniforcing, preset")
    text = client.get_model_version("tiny", "1").description
    assert client.get_registered_model("tiny").description == text
    body = (stage.folder / "README.md").read_text().split("---\n", 2)[2]
    assert all(line in text for line in body.splitlines()) and "library_name" not in text
    assert f"/runs/{run_id}/artifacts/sample.mp4)" in text
    files = Path(urlsplit(client.get_model_version_download_uri("tiny", "1")).path)
    assert "red ball" in (files / "input_example.json").read_text()


def test_a_card_that_is_longer_than_the_registry_takes_ends_with_a_link_to_the_rest(
    registry: Registry,
) -> None:
    run = registry.client.get_run(registry.version("tiny", "1").run_id)
    card = "# Card\n" + "a line of a long card\n" * 400
    text = page_text(card, run, "sample.mp4", "sample.png")
    assert len(text) <= LONGEST and text.startswith("# Card\n")
    *_, last, _, rest = text.splitlines()
    assert last == "a line of a long card" and rest.endswith("/artifacts/README.md)")
    assert page_text("# A card\n---\nalone", run, "a.mp4", "a.png").endswith("---\nalone")


@pytest.mark.slow
def test_an_artifact_of_a_server_is_copied_once(
    registry: Registry, project: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{project / 'server.db'}"]
    command += ["--artifacts-destination", str(project / "served")]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    server = subprocess.Popen(command, cwd=project, env=environment)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
        remote = _connect(project)
        source = registry.artifact(registry.find("models:/tiny/1")).parents[1]
        remote.register("tiny", log_export(remote.client, None, source))
        remote.client.set_registered_model_alias("tiny", "champion", "1")
        first = Artifact.open("models:/tiny@champion").folder
        assert project / "cache" in first.parents
        assert folder_digest(first) == folder_digest(artifact.folder)
        shutil.rmtree(project / "served")
        assert Artifact.open("models:/tiny/1").folder == first
    finally:
        server.terminate()
        server.wait()


def _connect(project: Path) -> Registry:
    for _ in range(120):
        try:
            return open_registry(project)
        except Exception:
            time.sleep(1)
    raise TimeoutError
