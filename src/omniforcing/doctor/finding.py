"""One fact about a machine or an installation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A fact, with what is wrong with it.

    Attributes:
        area: what it belongs to, such as ``versions``.
        name: of what.
        value: the fact, for people.
        fault: what is wrong and what to do, a sentence with a remedy; None if nothing is.
        needed: whether every use of the package needs this to be right; else ``fault`` is a note.
    """

    area: str
    name: str
    value: str
    fault: str | None = None
    needed: bool = True

    @property
    def state(self) -> str:
        """``ok``, ``note`` for what limits some uses, ``wrong`` for what is needed."""
        if self.fault is None:
            return "ok"
        return "wrong" if self.needed else "note"

    def as_json(self) -> dict[str, str | None]:
        """The fact as a JSON object."""
        names = ("area", "name", "value", "state", "fault")
        return {name: getattr(self, name) for name in names}
