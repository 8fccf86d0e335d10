"""Artifacts handed on: card, folders, the Hub; nothing half-published."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from omniforcing.cli import main
from omniforcing.core.files import folder_digest, read_json, write_manifest
from omniforcing.streaming.artifact import Artifact, write_artifact
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.publishing.card import CardFacts
from tests.support.hub import Hub, commit_id, environment, hub_server, use
from tests.support.refusals import refused
from tests.support.streams import PROMPT
from tests.support.tiny_artifact import METRICS, make_settings

NAME = "someone/tiny"
FACTS = CardFacts("apache-2.0", base_model="Lightricks/LTX-2", sample="rain: on a roof")


@pytest.fixture(scope="module")
def licensed(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose card names a licence, with a sample."""
    folder = tmp_path_factory.mktemp("licensed")
    write_artifact(folder, *parts, make_settings(), METRICS, facts=FACTS)
    (folder / "sample.mp4").write_bytes(b"a clip")
    write_manifest(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as running:
        use(running, str(tmp_path / "cache"), monkeypatch)
        yield running


def done(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command that ends well prints."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    output = capsys.readouterr()
    assert end.value.code == 0, output.err
    return output.out


def fails(
    capsys: pytest.CaptureFixture[str], words: list[object], code: str, *facts: object
) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 2
    refused(capsys.readouterr().err, code, *facts)


# --- the card ---


def test_tools_of_the_hub_read_licence_base_model_tags_sample_and_metrics(licensed: Path) -> None:
    card = ModelCard.load(licensed / "README.md")
    fields = card.data
    assert (fields.license, fields.base_model) == ("apache-2.0", "Lightricks/LTX-2")
    assert fields.pipeline_tag == "text-to-video" and "streaming" in fields.tags
    assert fields.to_dict()["widget"] == [
        {"text": "rain: on a roof", "output": {"url": "sample.mp4"}}
    ]
    measured = {result.metric_type: result.metric_value for result in fields.eval_results}
    assert measured == {"sync_f1": 0.5, "sync_margin": 0.25, "ttfc_s": 0.125}
    assert {result.dataset_type for result in fields.eval_results} == {"omniforcing-smoke"}


def test_a_licence_of_its_own_has_name_and_link(parts: tuple[Path, Path], tmp_path: Path) -> None:
    facts = CardFacts("ltx-2-community", "https://example.org/licence")
    write_artifact(tmp_path, *parts, make_settings(), {}, facts=facts)
    fields = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (fields["license"], fields["license_name"]) == ("other", "ltx-2-community")
    assert fields["license_link"] == "https://example.org/licence"
    assert "model-index" not in fields and "base_model" not in fields


# --- folders ---


def test_push_and_pull_make_the_same_artifact_once(
    licensed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, copy = tmp_path / "models" / "tiny", tmp_path / "copy"
    for source, words in ((licensed, ["push"]), (published, ["pull"])):
        target = published if words == ["push"] else copy
        assert "there already" not in done(capsys, *words, source, target)
        assert "there already" in done(capsys, *words, source, target)
        assert folder_digest(target) == folder_digest(licensed)
        assert Artifact.open(target).settings == make_settings()
    (published / ".gitattributes").write_text("a clone of the Hub's repository has it\n")
    assert "there already" in done(capsys, "push", licensed, published)


def test_a_folder_with_other_content_stays_as_it_is(
    licensed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    damaged = shutil.copytree(licensed, tmp_path / "damaged")
    (damaged / "sample.mp4").write_bytes(b"another clip")
    for target in (other, damaged, other / "thesis.txt"):
        for command in ("push", "pull"):
            fails(capsys, [command, licensed, target], "publishing.other-content", target)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    assert (damaged / "sample.mp4").read_bytes() == b"another clip"


def test_what_is_no_whole_artifact_with_a_licence_is_not_pushed(
    artifact: Artifact, own_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "published"
    fails(capsys, ["push", artifact.folder, target], "publishing.no-licence", "export.licence")
    (own_artifact / "README.md").write_text("# A card without front matter\n")
    write_manifest(own_artifact)
    fails(capsys, ["push", own_artifact, target], "publishing.no-front-matter", own_artifact)
    (own_artifact / "README.md").unlink()
    fails(capsys, ["push", own_artifact, target], "file.missing", "README.md")
    fails(capsys, ["push", tmp_path / "no", target], "streaming.not-an-artifact", tmp_path / "no")
    assert not target.exists()


def test_a_manifest_that_leads_out_of_its_folder_is_refused(
    own_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text("secret")
    manifest = own_artifact / "manifest.json"
    digest = read_json(manifest)["files"]["streaming.json"]["sha256"]
    text = manifest.read_text().replace('"streaming.json"', '"../artifact/streaming.json"')
    assert digest in text
    manifest.write_text(text)
    fails(capsys, ["pull", own_artifact, tmp_path / "copy"], "hub.foreign-file", "../artifact")
    assert not (tmp_path / "copy").exists()


# --- the Hub ---


def test_an_artifact_is_pushed_in_one_commit_and_streams_by_its_name(
    hub: Hub, licensed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = done(capsys, "push", licensed, NAME)
    assert commit_id(NAME, 1)[:12] in said and folder_digest(licensed)[:12] in said
    assert len(hub.commits[NAME]) == 2  # an empty one, and this
    files = {p.relative_to(licensed).as_posix() for p in licensed.rglob("*") if p.is_file()}
    assert hub.files(NAME).keys() == files
    assert "there already" in done(capsys, "push", licensed, NAME)
    assert len(hub.commits[NAME]) == 2

    engine = Engine(NAME)
    assert folder_digest(engine.artifact.folder) == folder_digest(licensed)
    assert tmp_path / "cache" in engine.artifact.folder.parents
    fetched = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert Engine(f"{NAME}@{commit_id(NAME, 1)}").digest == engine.digest
    again = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert again == fetched and not any(".gitattributes" in line for line in fetched)
    done(capsys, "pull", NAME, tmp_path / "copy")
    assert folder_digest(tmp_path / "copy") == folder_digest(licensed)


def test_once_fetched_an_artifact_opens_offline(
    hub: Hub, licensed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done(capsys, "push", licensed, NAME)
    fails(capsys, ["push", licensed, f"{NAME}@main"], "option.malformed", "@main")
    stream = ["stream", "--prompt", PROMPT, "--out", "clip.mp4", "--artifact"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails(capsys, [*stream, NAME], "hub.offline", NAME, "HF_HUB_OFFLINE")
    fails(capsys, ["push", licensed, NAME], "hub.offline", NAME, "HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetched = Artifact.open(NAME).folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Artifact.open(NAME).folder == fetched
    assert hub.commits[NAME]


def test_a_repository_with_other_content_stays_as_it_is(
    hub: Hub, licensed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.make("someone/other", **{"thesis.txt": b"years of work"})
    fails(capsys, ["push", licensed, "someone/other"], "hub.other-content", "thesis.txt", hub.url)
    done(capsys, "push", licensed, NAME)
    hub.commits[NAME][-1]["README.md"] += b"Edited on the Hub's page.\n"
    fails(capsys, ["push", licensed, NAME], "hub.other-content", "(README.md)")
    del hub.commits[NAME][-1]["README.md"]
    fails(capsys, ["push", licensed, NAME], "hub.other-content", "(no README.md)")
    assert len(hub.commits[NAME]) == 2 and len(hub.commits["someone/other"]) == 1
    hub.make("someone/empty")
    done(capsys, "push", licensed, "someone/empty")


def test_what_the_hub_does_not_have_or_allow_is_one_sentence(
    hub: Hub,
    licensed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.make("someone/text", **{"poem.txt": b"roses"})
    copy = tmp_path / "copy"
    fails(capsys, ["pull", "someone/nothing", copy], "hub.unknown-repository", hub.url)
    fails(capsys, ["pull", "someone/text", copy], "hub.not-an-artifact", "someone/text")
    fails(capsys, ["pull", "someone/text@v2", copy], "hub.unknown-revision", "'v2'")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    fails(capsys, ["push", licensed, NAME], "hub.no-permission", "HF_TOKEN", hub.url)
    assert not copy.exists() and NAME not in hub.commits


@pytest.mark.extended
def test_a_hub_that_does_not_answer_is_one_sentence(
    hub: Hub,
    licensed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.url = "http://127.0.0.1:1"
    use(hub, str(tmp_path / "cache"), monkeypatch)
    for words in (["push", licensed, NAME], ["pull", NAME, tmp_path / "copy"]):
        fails(capsys, words, "hub.no-answer", hub.url, NAME)
    for words in (["serve", "--port", 0], ["stream", "--prompt", "a", "--out", tmp_path / "a.mp4"]):
        fails(capsys, [*words, "--artifact", NAME], "hub.no-answer", hub.url, NAME)


@pytest.mark.extended
def test_a_push_that_is_killed_shows_nothing_and_the_next_one_goes_on(
    hub: Hub, licensed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process, with the variables that huggingface_hub documents."""
    hub.uploads.clear()
    command = [sys.executable, "-m", "omniforcing", "push", str(licensed), NAME]
    variables = {**os.environ, **environment(hub, str(tmp_path / "other"))}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE)
    assert hub.uploading.wait(120), process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.uploads.set()
    assert hub.files(NAME) == {}
    done(capsys, "push", licensed, NAME)
    assert "manifest.json" in hub.files(NAME)
