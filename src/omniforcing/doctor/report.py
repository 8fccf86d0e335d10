"""``omniforcing doctor``: everything that was found, and what is wrong at its end."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from omniforcing.core.config import ConfigError, project_root
from omniforcing.core.environment import data_root
from omniforcing.doctor import machine, package
from omniforcing.doctor.finding import Finding

WRONG = 1  # exit code


def examine() -> list[Finding]:
    """Look at the installation and at the machine; takes a second or two."""
    checkout = _checkout()
    data = data_root(checkout) if checkout else None
    values = dict(os.environ)
    return [
        *package.versions(checkout),
        *package.kept_files(),
        *package.codecs(),
        *machine.devices(values),
        *machine.ports(),
        *machine.folders(checkout, data),
        *machine.variables(checkout, values),
    ]


def _checkout() -> Path | None:
    try:
        return project_root()
    except ConfigError:
        return None


def page(findings: Sequence[Finding]) -> str:
    """Write all findings by area, then what is wrong or limits some uses, each as a sentence."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for area, members in groupby(findings, lambda finding: finding.area):
        lines.append(area)
        for finding in members:
            mark = {"ok": " ", "note": "-", "wrong": "!"}[finding.state]
            lines.append(f"{mark} {finding.name:<{width}}  {finding.value}")
        lines.append("")
    for state, title in (("note", "notes"), ("wrong", "what is wrong")):
        told = [finding for finding in findings if finding.state == state]
        if told:
            lines += [title, *(f"  {finding.name}: {finding.fault}" for finding in told), ""]
    if not any(finding.state == "wrong" for finding in findings):
        lines.append("nothing that is needed is wrong")
    return "\n".join(lines).rstrip()


def report(as_json: bool = False) -> int:
    """Print what was found.

    Args:
        as_json: whether to print json instead of a page.

    Returns:
        Exit code: 1 if something that is needed is wrong, else 0.
    """
    findings = examine()
    wrong = any(finding.state == "wrong" for finding in findings)
    if as_json:
        listed = [finding.as_json() for finding in findings]
        print(json.dumps({"ok": not wrong, "findings": listed}, indent=2))
    else:
        print(page(findings))
    return WRONG if wrong else 0
