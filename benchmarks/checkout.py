"""A checkout of the project as it is committed, copied for a benchmark."""

from __future__ import annotations

import subprocess
from pathlib import Path

from omniforcing.core.errors import OmniForcingError


def clone_checkout(checkout: Path, folder: Path) -> str:
    """Clone a checkout as committed to a new folder; return its commit, abbreviated.

    Raises:
        OmniForcingError: if git refuses.
    """
    _git("clone", "--quiet", str(checkout), str(folder))
    return _git("-C", str(folder), "rev-parse", "--short", "HEAD").strip()


def _git(*words: str) -> str:
    answer = subprocess.run(["git", *words], capture_output=True, text=True)
    if answer.returncode:
        raise OmniForcingError(
            "benchmarks.command-failed",
            f"`git {' '.join(words)}` failed: {answer.stderr.strip()}; name a checkout",
        )
    return answer.stdout
