"""The exception that users see as one line, `error[code]: sentence`, instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class OmniForcingError(Exception):
    """Something that the user can mend.

    Tests and programs check the code; the wording may change (docs/reference/errors.md lists both).

    Args:
        code: stable name of the kind of error, ``room.what-is-wrong``, such as
            ``config.unknown-key``. One kind has one code, wherever it is raised.
        message: what was expected, what was found, where, and what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Callable[..., OmniForcingError], tuple[Any, ...], dict[str, Any]]:
        # The default would call the subclass with (code, message), whatever its own arguments are.
        return _unpickle, (type(self), self.args), self.__dict__

    def as_json(self) -> dict[str, str]:
        """Return the code and the message, for a file or a message to another process."""
        return {"code": self.code, "message": self.message}

    @classmethod
    def from_json(cls, values: Mapping[str, str]) -> OmniForcingError:
        """Rebuild the error that another process wrote with ``as_json``."""
        return cls(values["code"], values["message"])


def _unpickle(kind: type[OmniForcingError], arguments: tuple[Any, ...]) -> OmniForcingError:
    return kind.__new__(kind, *arguments)


QUOTED_CHARS = 60  # of what somebody else wrote; a sentence is no place for a megabyte


def quoted(value: object) -> str:
    """Return the ``repr`` of a value from outside for a sentence, cut to ``QUOTED_CHARS``."""
    if isinstance(value, str):
        value = value[: QUOTED_CHARS + 1]
    elif isinstance(value, int) and value.bit_length() > 1024:
        # Python refuses to write numbers of more than 4300 digits.
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= QUOTED_CHARS else f"{text[: QUOTED_CHARS - 3]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names the nearest known name; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"; did you mean {near[0]!r}?" if near else ""
