"""The one exception that users see as a sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OmniForcingError(Exception):
    """Something the user can mend: the message says what was expected, what was found, where, and what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of a sentence that refuses ``name``: the nearest known name, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"; did you mean {near[0]!r}?" if near else ""
