"""``omniforcing release``: one refused, one passed, what the page says, mistakes."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from omniforcing.cli import main
from omniforcing.core.files import write_json
from omniforcing.evaluation.measures.registry import MEASURES
from omniforcing.evaluation.report import COLUMNS
from omniforcing.pipeline.release.release import Release, release
from omniforcing.pipeline.release.rules import FILE, read_rules
from omniforcing.tracking.registry import Registry
from tests.support.answering import answering, black_hole
from tests.support.refusals import refused, refuses
from tests.support.releases import (
    CLIPS,
    STUDENT,
    change_settings,
    edited,
    log_export,
    open_registry,
    save_model,
    write_evaluations,
)

pytestmark = pytest.mark.extended

NAME = "omniforcing-pocket"
RULES = """
metrics:
  sync_margin: {better: higher, margin: 0.05}
  sync_f1: {better: higher, margin: 0.05}
  silent_share: {better: lower, margin: 0.2}
"""


@pytest.fixture(scope="session")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Evaluations of a student in sync, of one a little late, and of one beyond tolerance."""
    folder = tmp_path_factory.mktemp("evaluations")
    return write_evaluations(folder, {"good": 0, "close": 160, "late": 3200})


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_json(folder / "artifact" / "streaming.json", {})
    return save_model(folder, folder / "artifact")


@pytest.fixture
def registry(project: Path) -> Registry:
    """The registry of a project with rules."""
    (project / "conf" / "release.yaml").write_text(RULES)
    return open_registry(project)


Export = Callable[[Path | None], str]


@pytest.fixture
def export(registry: Registry, model: Path) -> Export:
    """Make a finished run of stage export with an evaluation."""
    return lambda evaluation: log_export(registry.client, evaluation, model)


@pytest.fixture
def first(export: Export, project: Path, evaluations: Mapping[str, Path]) -> Release:
    """The release of a student in sync, the first."""
    export(evaluations["good"])
    return release(project)


def own(evaluation: Path, project: Path) -> Path:
    """A copy of an evaluation that a test may spoil."""
    return Path(shutil.copytree(evaluation, project / "spoilt"))


def test_the_first_release_becomes_champion_without_a_comparison(
    registry: Registry, project: Path, first: Release
) -> None:
    done = first
    assert done.passed and registry.aliases(NAME) == {"champion": "1"}
    assert done.page is not None
    html = done.page.read_text()
    assert done.page == project / "data" / "pocket" / "release" / f"{NAME}-1.html"
    assert "no champion" in html and "nothing to compare with" in html
    again = release(project)
    assert again.passed and again.page is None and again.version.number == "1"


@pytest.mark.usefixtures("first")
def test_a_worse_candidate_is_refused_and_kept_with_the_reason(
    registry: Registry,
    project: Path,
    export: Export,
    evaluations: Mapping[str, Path],
) -> None:
    run_id = export(evaluations["late"])
    done = release(project)
    assert not done.passed and registry.aliases(NAME) == {"champion": "1"}
    for fact in ("sync_margin", "sync_f1", "margin 0.05", f"models:/{NAME}/1", f"models:/{NAME}/2"):
        assert fact in done.why
    kept = registry.version(NAME, "2")
    assert kept.run_id == run_id and kept.tags["refused"] == done.why
    assert done.page is not None
    html = done.page.read_text()
    assert done.why in html and html.count('class="worse"') == 2
    assert f"{CLIPS} of {CLIPS} pairs of clips" in html and "c" * 40 in html
    logged = registry.client.list_artifacts(run_id, "release")
    assert [file.path for file in logged] == [f"release/{NAME}-2.html"]


def test_the_page_of_the_model_describes_the_champion(
    registry: Registry,
    project: Path,
    first: Release,
    export: Export,
    evaluations: Mapping[str, Path],
) -> None:
    def described() -> str:
        return str(registry.client.get_registered_model(NAME).description)

    champion = first.version.run_id
    assert champion in described()
    refused_run = export(evaluations["late"])
    release(project)
    version = registry.client.get_model_version(NAME, "2")
    assert refused_run in version.description and champion in described()
    better = export(evaluations["close"])
    release(project)
    assert better in described()


@pytest.mark.usefixtures("first")
def test_the_command_ends_with_2_for_a_candidate_that_is_refused_and_with_0_for_a_champion(
    project: Path,
    export: Export,
    evaluations: Mapping[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, code in (("late", 2), ("close", 0)):
        export(evaluations[name])
        with pytest.raises(SystemExit) as end:
            main(["release"])
        assert end.value.code == code
        said = capsys.readouterr()
        page = f"data/pocket/release/{NAME}-{2 if code else 3}.html"
        if code:
            refused(said.err, "pipeline.release-refused", "sync_margin", project / page)
        else:
            assert f"{NAME}/3 is released" in said.out and str(project / page) in said.out


@pytest.mark.usefixtures("first")
def test_a_candidate_within_the_margins_becomes_champion(
    registry: Registry,
    project: Path,
    export: Export,
    evaluations: Mapping[str, Path],
) -> None:
    export(evaluations["close"])
    done = release(project)
    assert done.passed and registry.aliases(NAME) == {"champion": "2"}
    found = registry.version(NAME, "2")
    assert found.tags["released"] == done.why and "refused" not in found.tags
    # The old champion may come back: it is no worse, and its tags say so.
    back = release(project, f"models:/{NAME}/1")
    assert back.passed and registry.aliases(NAME) == {"champion": "1"}


@pytest.mark.usefixtures("first")
def test_wider_margins_release_what_was_refused(
    registry: Registry,
    project: Path,
    export: Export,
    evaluations: Mapping[str, Path],
) -> None:
    export(evaluations["late"])
    assert not release(project).passed
    wide = project / "wide.yaml"
    wide.write_text("metrics: {sync_margin: {better: higher, margin: 1}}")
    assert release(project, rules=wide).passed
    tags = registry.version(NAME, "2").tags
    assert "released" in tags and "refused" not in tags


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("change", "fact"),
    [({"seed": 7}, "seed is 7 and 0"), ({"seeds": 2}, "seeds is 2"), ({}, "6 of 6 clips")],
)
def test_evaluations_of_other_captions_or_seeds_are_not_compared(
    registry: Registry,
    project: Path,
    export: Export,
    evaluations: Mapping[str, Path],
    change: dict[str, Any],
    fact: str,
) -> None:
    other = own(evaluations["close"], project)
    change_settings(other, **change)
    if not change:
        with edited(other / "clips.json") as table:
            place = table["columns"].index("caption")
            for row in table["data"]:
                row[place] = "something else"
    export(other)
    with refuses("pipeline.not-paired", fact):
        release(project)
    assert registry.aliases(NAME) == {"champion": "1"}
    assert len(registry.client.search_model_versions(f"name = '{NAME}'")) == 1


@pytest.mark.usefixtures("first")
def test_fewer_clips_are_not_compared_with_all(
    registry: Registry, project: Path, export: Export, evaluations: Mapping[str, Path]
) -> None:
    other = own(evaluations["close"], project)
    with edited(other / "clips.json") as table:
        place = table["columns"].index("set")
        first = next(row for row in table["data"] if row[place] == STUDENT)
        table["data"].remove(first)
    export(other)
    with refuses("pipeline.not-paired", "5 and 6 clips"):
        release(project)
    assert registry.aliases(NAME) == {"champion": "1"}


@pytest.mark.usefixtures("first")
def test_figures_without_clips_are_compared_by_their_standard_errors(
    project: Path, export: Export, evaluations: Mapping[str, Path]
) -> None:
    """As those of evaluations that kept no sync of each clip."""
    other = own(evaluations["late"], project)
    with edited(other / "clips.json") as table:
        place = table["columns"].index("sync_hits")
        for row in [table["columns"], *table["data"]]:
            del row[place]
    export(other)
    done = release(project)
    assert not done.passed and done.page is not None
    assert "standard errors of both" in done.page.read_text()


@pytest.mark.usefixtures("first")
def test_a_metric_that_can_no_longer_be_measured_is_worse(
    project: Path, export: Export, evaluations: Mapping[str, Path]
) -> None:
    other = own(evaluations["close"], project)
    with edited(other / "metrics.json") as metrics:
        metrics["models"]["self_forcing"]["sync_f1"] = None
    export(other)
    done = release(project)
    assert not done.passed and "sync_f1 could not be measured" in done.why


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        ("metrics: {sync_margn: {better: higher, margin: 0}}", "unknown-metric", "'sync_margin'"),
        ("metrics: {sync_f1: {better: up, margin: 0}}", "bad-release-rules", "'up'"),
        ("metrics: {sync_f1: {better: lower, margin: -1}}", "bad-release-rules", "-1"),
        ("metrics: {sync_f1: {beter: lower, margin: 1}}", "bad-release-rules", "'better'"),
        ("metrics: {sync_f1: 3}", "bad-release-rules", "sync_f1"),
        ("metric: {}", "bad-release-rules", "metrics"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused_before_anything_changes(
    registry: Registry,
    project: Path,
    export: Export,
    evaluations: Mapping[str, Path],
    text: str,
    code: str,
    fact: str,
) -> None:
    export(evaluations["good"])
    (project / "conf" / "release.yaml").write_text(text)
    with refuses(f"pipeline.{code}", fact):
        release(project)
    assert registry.aliases(NAME) is None and not (project / "data" / "pocket" / "release").exists()


def test_the_rules_that_come_with_the_project_name_metrics_that_there_are() -> None:
    rules = read_rules(Path(__file__).parents[2] / FILE)
    assert {rule.metric for rule in rules} <= {*COLUMNS, *(kind.name for kind in MEASURES)}


@pytest.mark.usefixtures("registry")
def test_rules_that_are_missing_or_no_yaml_are_one_sentence(project: Path) -> None:
    with refuses("pipeline.bad-release-rules", "nothing.yaml"):
        release(project, rules=project / "nothing.yaml")
    (project / "conf" / "release.yaml").write_text("metrics: {a: [}")
    with refuses("config.not-yaml", "release.yaml"):
        release(project)


def test_a_candidate_that_is_not_there_is_one_sentence(
    project: Path, export: Export, evaluations: Mapping[str, Path]
) -> None:
    with refuses("pipeline.no-candidate", "omniforcing stage export --preset pocket"):
        release(project)
    export(None)
    with refuses("tracking.no-evaluation"):
        release(project)
    export(evaluations["good"])
    release(project)
    for name, fact in (
        (f"models:/{NAME}@champin", "'champion'"),
        ("models:/omniforcing-poket/1", repr(NAME)),
        (f"models:/{NAME}/9", "version 9"),
    ):
        with refuses("tracking.unknown-model", fact):
            release(project, name)
    with refuses("tracking.malformed-model", "models:/NAME/VERSION"):
        release(project, "data/pocket/artifact")


@pytest.mark.usefixtures("registry")
def test_a_registry_that_is_down_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with black_hole() as silent, answering(503) as broken:
        for url in (silent, broken.url, "http://127.0.0.1:1"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            with refuses("tracking.no-mlflow", url):
                release(project)
