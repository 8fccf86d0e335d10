"""The exception that users see as one sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OmniForcingError(Exception):
    """Something that the user can mend.

    Tests and programs check the code; the wording may change (docs/reference/errors.md lists both).

    Args:
        code: stable name of the kind of error, ``room.what-is-wrong``, such as
            ``config.unknown-key``. One kind has one code, wherever it is raised.
        message: what was expected, what was found, where, and what to do.
    """

    def __init__(self, code: str, message: str | None = None) -> None:
        # Until every error has its code, one argument is the message.
        code, message = ("unnamed", code) if message is None else (code, message)
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End a sentence that refuses ``name`` with the nearest known name, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"; did you mean {near[0]!r}?" if near else ""
