"""``omniforcing release``: a candidate becomes champion, or a page says why not.

The alias moves last: a release that fails on the way leaves the champion as it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.environment import data_root
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_write
from omniforcing.evaluation.measures.compare import Evaluated
from omniforcing.evaluation.report import format_number, render_template
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.release.gate import STUDENT, Judgement, judge
from omniforcing.pipeline.release.rules import FILE, read_rules
from omniforcing.pipeline.tracking import EXPERIMENT, connect
from omniforcing.tracking.registry import Registry, Version
from omniforcing.tracking.store import UPLOAD, answering, tracking_uri

CHAMPION = "champion"
REFUSED, RELEASED = "refused", "released"  # tags of versions that say why


@dataclass(frozen=True)
class Release:
    """What a release did.

    Attributes:
        version: the candidate.
        passed: whether it is the champion now.
        why: a sentence.
        page: the report; None if it was the champion before.
    """

    version: Version
    passed: bool
    why: str
    page: Path | None


def release(
    root: Path, candidate: str | None = None, preset: str | None = None, rules: Path | None = None
) -> Release:
    """Judge a candidate, write the report, and move the alias if nothing got worse.

    Args:
        root: the checkout.
        candidate: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``; None for what the preset's
            last finished export logged, which is registered if it is not.
        preset: name of the preset; the tracked one if None.
        rules: file with the rules; ``conf/release.yaml`` if None.

    Raises:
        OmniForcingError: if rules, candidate, champion or their evaluations cannot be used, or
            MLflow does not answer. The alias is where it was.
    """
    wanted = read_rules(rules or root / FILE)
    registry = Registry(tracking_uri(root), connect(root))
    if candidate is None:
        model, run_id = _last_export(registry, root, preset)
        version = registry.version_of_run(model, run_id)
    else:
        version = registry.find(candidate)
        model, run_id = version.name, version.run_id
    holder = (registry.aliases(model) or {}).get(CHAMPION)
    if version and version.number == holder:
        return Release(version, True, f"{version} is the champion already", None)
    champion = registry.version(model, holder) if holder else None
    with tempfile.TemporaryDirectory() as scratch:
        mine = Evaluated.open(registry.evaluation(run_id, Path(scratch, "candidate")))
        theirs = None
        if champion:
            place = Path(scratch, "champion")
            theirs = Evaluated.open(registry.evaluation(champion.run_id, place))
        judgements = judge(wanted, mine, theirs)
    version = version or registry.register(model, run_id)
    worse = [each.reason for each in judgements if each.worse]
    passed, why = not worse, _why(version, champion, worse)
    page = _page(registry, version, champion, judgements, why, mine.metrics["settings"])
    preset = str(mine.metrics["settings"]["preset"])
    place = data_root(root) / "data" / preset / "release" / f"{model}-{version.number}.html"
    atomic_write(place, page)
    _publish(registry, version, holder, passed, why, place)
    return Release(version, passed, why, place)


def _last_export(registry: Registry, root: Path, preset: str | None) -> tuple[str, str]:
    """Return the name under which a preset's model is registered, and the run of its last export.

    Raises:
        OmniForcingError: if there is none.
    """
    config = load_config([], root, preset)
    name = config.export.registered_model or f"{EXPERIMENT}-{config.preset}"
    wanted = f"tags.stage = 'export' AND tags.preset = '{config.preset}'"
    with answering(registry.uri):
        # Under `mlflow run` a run belongs to the experiment of its parent.
        experiments = [found.experiment_id for found in registry.client.search_experiments()]
        runs = registry.client.search_runs(
            experiments,
            f"{wanted} AND attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
    if not runs:
        raise OmniForcingError(
            "pipeline.no-candidate",
            f"no finished run of stage export of preset {config.preset} is in MLflow; run "
            f"`omniforcing stage export --preset {config.preset}`, or name models:/NAME/VERSION",
        )
    return name, runs[0].info.run_id


def _why(version: Version, champion: Version | None, worse: Sequence[str]) -> str:
    if champion is None:
        return f"{version} is released: there was no champion to compare it with"
    if worse:
        return f"{version} is refused, {champion} stays champion: {'; '.join(worse)}"
    return f"{version} is released: nothing got worse beyond its margin against {champion}"


def _page(
    registry: Registry,
    version: Version,
    champion: Version | None,
    judgements: Sequence[Judgement],
    why: str,
    settings: Mapping[str, Any],
) -> bytes:
    compared = {}
    for role, each in (("candidate", version), ("champion", champion)):
        if each:
            with answering(registry.uri):
                commit = registry.client.get_run(each.run_id).data.tags.get("git_commit", "unknown")
            compared[role] = {"name": str(each), "run": each.run_id, "commit": commit}
    return render_template(
        "release.html",
        title=f"Release of {version}",
        why=why,
        compared=compared,
        student=STUDENT.replace("_", " "),
        judgements=judgements,
        settings=settings,
        number=format_number,
    ).encode()


def _publish(
    registry: Registry, version: Version, holder: str | None, passed: bool, why: str, page: Path
) -> None:
    """Log the page, tag the version with the reason, describe it, and move the alias last."""
    if passed and (registry.aliases(version.name) or {}).get(CHAMPION) != holder:
        raise OmniForcingError(
            "pipeline.champion-moved",
            f"another release moved the alias {CHAMPION} of {version.name} meanwhile; run "
            f"`omniforcing release {version}` again to compare with the new champion",
        )
    client, place = registry.client, (version.name, version.number)
    tag, outdated = (RELEASED, REFUSED) if passed else (REFUSED, RELEASED)
    with answering(registry.uri, UPLOAD):
        client.log_artifact(version.run_id, str(page), "release")
        client.set_model_version_tag(*place, tag, why)
        if outdated in version.tags:
            client.delete_model_version_tag(*place, outdated)
    if passed:
        registry.describe_by(version)
        with answering(registry.uri):
            client.set_registered_model_alias(version.name, CHAMPION, version.number)
