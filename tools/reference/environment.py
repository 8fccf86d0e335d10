"""Page of environment variables: ours from ``core/environment.py``, and those of others we heed."""

from __future__ import annotations

from omniforcing.core.environment import OTHERS, OURS


def page() -> str:
    """List the variables, each with what it is for."""
    lines = ["# Environment variables", "", "## Ours", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {about} |" for name, about in OURS.items()]
    lines += ["", "They are read in `src/omniforcing/core/environment.py` and where that is used."]
    lines += ["", "## Of other programs", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {about} |" for name, about in OTHERS.items()]
    return "\n".join(lines)
