"""Rules of a release, ``conf/release.yaml``: what may not get worse, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError, did_you_mean, quoted
from omniforcing.pipeline.yaml_files import read_yaml

FILE = "conf/release.yaml"
HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Rule:
    """What a release asks of one metric.

    Attributes:
        metric: name of a figure of the evaluation.
        better: which values are better, ``higher`` or ``lower``.
        margin: by how much it may get worse, in the metric's unit.
    """

    metric: str
    better: str
    margin: float

    def loss(self, difference: float) -> float:
        """By how much the candidate is worse, given candidate less champion."""
        return -difference if self.better == HIGHER else difference


def read_rules(path: Path) -> list[Rule]:
    """Read the rules of a file.

    Raises:
        OmniForcingError: if it is missing, is not YAML, or a rule has another form.
    """
    if not path.is_file():
        raise OmniForcingError(
            "pipeline.bad-release-rules",
            f"{path} does not exist; name a file with rules in --rules",
        )
    content = read_yaml(path)
    rules = content.get("metrics")
    if set(content) != {"metrics"} or not isinstance(rules, dict) or not rules:
        raise OmniForcingError(
            "pipeline.bad-release-rules",
            f"{path} must hold the one key `metrics` with a line for each metric, such as "
            "`sync_margin: {better: higher, margin: 0.05}`",
        )
    return [_read_rule(str(name), values, path) for name, values in rules.items()]


def _read_rule(name: str, values: Any, path: Path) -> Rule:
    fault = _fault(values)
    if fault:
        raise OmniForcingError(
            "pipeline.bad-release-rules",
            f"{path}: {name} {fault}; write `{name}: {{better: higher, margin: 0.05}}`",
        )
    return Rule(name, values["better"], float(values["margin"]))


def _fault(values: Any) -> str | None:
    keys = ("better", "margin")
    if not isinstance(values, Mapping):
        return f"is {quoted(values)}, not a direction and a margin"
    for key in values:
        if key not in keys:
            return f"has the unknown key {key!r}{did_you_mean(str(key), keys)}"
    if values.get("better") not in (HIGHER, LOWER):
        return f"has better: {quoted(values.get('better'))}, not {HIGHER} or {LOWER}"
    margin = values.get("margin")
    if not isinstance(margin, int | float) or isinstance(margin, bool) or not 0 <= margin < 1e30:
        return f"has margin: {quoted(margin)}, not a number from 0 up"
    return None
