"""Judge a candidate's evaluation against the champion's, metric by metric.

Both must have made their clips of the same captions with the same seeds, so that clips are pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.evaluation.measures.compare import Evaluated, paired_sync
from omniforcing.evaluation.measures.tables import paired_difference
from omniforcing.evaluation.samplers import MODELS
from omniforcing.pipeline.release.rules import Rule

STUDENT = MODELS[-1]  # the model in an artifact
_SETTINGS = ("seed", "seeds", "tolerance_ms")  # of an evaluation, which fix captions and seeds
_NO_METRICS = ("clips",)
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Judgement:
    """A metric of candidate and champion, judged by its rule.

    Attributes:
        rule: the metric, its direction and margin.
        candidate: its figure; None if it could not be measured.
        champion: the champion's; None without one.
        difference: candidate less champion; a mean over pairs of clips where there are pairs.
        low: lower end of the difference's interval of 95 %; None without an interval.
        high: upper end.
        how: what the interval is over.
        worse: whether the metric got worse beyond its margin.
        verdict: that in words.
    """

    rule: Rule
    candidate: float | None
    champion: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    how: str = ""
    worse: bool = False
    verdict: str = "nothing to compare with"

    @property
    def reason(self) -> str:
        """Why a metric is refused, as part of a sentence."""
        if self.difference is None:
            return f"{self.rule.metric} could not be measured"
        return (
            f"{self.rule.metric} is worse by {self.rule.loss(self.difference):.3g} "
            f"(margin {self.rule.margin:g})"
        )


def judge(
    rules: Sequence[Rule], candidate: Evaluated, champion: Evaluated | None
) -> list[Judgement]:
    """Judge a candidate by rules.

    Args:
        rules: what is compared.
        candidate: its evaluation.
        champion: the champion's; None if there is none.

    Raises:
        OmniForcingError: if a rule names no metric of theirs, or captions, seeds or protocols
            differ.
    """
    both = [candidate] if champion is None else [candidate, champion]
    for evaluated in both:
        if STUDENT not in evaluated.metrics["models"] or STUDENT not in evaluated.clips:
            raise OmniForcingError(
                "evaluation.nothing-in-common",
                f"the evaluation in {evaluated.folder} is not of {STUDENT}, the model of an "
                "artifact; run stage evaluate",
            )
    known = {name: None for evaluated in both for name in _figures(evaluated)}
    for rule in rules:
        if rule.metric not in known:
            raise OmniForcingError(
                "pipeline.unknown-metric",
                f"the rules name {rule.metric!r}, which is no metric of these evaluations"
                f"{did_you_mean(rule.metric, known)}; there are {', '.join(known)}",
            )
    if champion is not None:
        _check_pairs(candidate, champion, rules)
    return [_judge(rule, candidate, champion) for rule in rules]


def _figures(evaluated: Evaluated) -> dict[str, float | None]:
    """Every metric of the student by name; None where it could not be measured."""
    row: dict[str, Any] = evaluated.metrics["models"][STUDENT]
    found: dict[str, float | None] = {}
    for name, value in row.items():
        is_figure = value is None or (
            isinstance(value, int | float) and not isinstance(value, bool)
        )
        if is_figure and name not in _NO_METRICS and not name.endswith("_error"):
            found[name] = value
    for name in evaluated.metrics["protocols"]:
        found[name] = row.get("measures", {}).get(name, {}).get("value")
    return found


def _check_pairs(candidate: Evaluated, champion: Evaluated, rules: Sequence[Rule]) -> None:
    """Refuse evaluations whose clips are no pairs, or whose figures were taken differently."""
    for key in _SETTINGS:
        values = [each.metrics["settings"].get(key) for each in (candidate, champion)]
        if values[0] != values[1]:
            raise _not_paired(f"{key} is {values[0]} and {values[1]}")
    mine, theirs = (
        {(row["clip"], row["caption"], row["seconds"]) for row in each.clips[STUDENT]}
        for each in (candidate, champion)
    )
    if len(mine) != len(theirs):
        raise _not_paired(f"there are {len(mine)} and {len(theirs)} clips")
    if mine != theirs:
        raise _not_paired(
            f"{len(mine - theirs)} of {len(mine)} clips of the candidate have another caption or "
            "length there"
        )
    drifts = [_drift(each) for each in (candidate, champion)]
    lengths = [(drift.get("clips"), drift.get("seconds")) for drift in drifts]
    if all(drifts) and lengths[0] != lengths[1]:
        raise _not_paired(f"clips and seconds of the long rollouts are {lengths[0]}, {lengths[1]}")
    protocols = [each.metrics["protocols"] for each in (candidate, champion)]
    for rule in rules:
        ids = {known[rule.metric]["id"] for known in protocols if rule.metric in known}
        if len(ids) > 1:
            raise _not_paired(f"{rule.metric} was taken by two protocols")


def _not_paired(what: str) -> OmniForcingError:
    return OmniForcingError(
        "pipeline.not-paired",
        f"candidate and champion were not evaluated alike: {what}; evaluate the candidate with the "
        "champion's settings and clips, or move the alias by hand",
    )


def _judge(rule: Rule, candidate: Evaluated, champion: Evaluated | None) -> Judgement:
    mine = _figures(candidate).get(rule.metric)
    if champion is None:
        return Judgement(rule, mine)
    theirs = _figures(champion).get(rule.metric)
    if theirs is None:
        return Judgement(rule, mine, verdict="the champion has no such figure")
    if mine is None:
        return Judgement(rule, None, theirs, worse=True, verdict="could not be measured")
    difference, low, high, how = _difference(rule.metric, candidate, champion, mine - theirs)
    worse = rule.loss(difference) > rule.margin
    return Judgement(
        rule, mine, theirs, difference, low, high, how, worse, _verdict(rule, worse, low, high)
    )


def _verdict(rule: Rule, worse: bool, low: float | None, high: float | None) -> str:
    if worse:
        return "worse beyond the margin"
    if low is not None and high is not None:
        losses = sorted((rule.loss(low), rule.loss(high)))
        if losses[1] > rule.margin:
            return "within the margin, but the interval is not"
        if losses[1] < 0:
            return "better"
    return "within the margin"


def _difference(
    metric: str, candidate: Evaluated, champion: Evaluated, plain: float
) -> tuple[float, float | None, float | None, str]:
    """Candidate less champion with an interval of 95 %, and what that is over.

    Over pairs of clips where the table of clips has the metric; else of both standard errors,
    which are too wide for pairs; else none.
    """
    rows = candidate.clips[STUDENT], champion.clips[STUDENT]
    paired = paired_sync(metric, *rows) or paired_difference(metric, *rows)
    if paired:
        how = f"{paired.n} of {len(rows[0])} pairs of clips, resampled"
        return paired.value, paired.low, paired.high, how
    errors = [_standard_error(metric, each) for each in (candidate, champion)]
    if None in errors:
        return plain, None, None, "no interval"
    half = _NORMAL_95 * sum(error**2 for error in errors if error is not None) ** 0.5
    return plain, plain - half, plain + half, "standard errors of both"


def _standard_error(metric: str, evaluated: Evaluated) -> float | None:
    if metric == "drift_margin":  # the margin in the last third of long rollouts
        errors = _drift(evaluated).get("thirds", {}).get("error")
        return float(errors[-1]) if errors else None
    value = evaluated.metrics["models"][STUDENT].get(f"{metric}_error")
    return None if value is None else float(value)


def _drift(evaluated: Evaluated) -> dict[str, Any]:
    return dict(evaluated.metrics["models"][STUDENT].get("drift", {}))
