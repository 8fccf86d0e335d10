"""Rejects: files and clips that cannot be used, with the reason, and their share."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError, quoted
from omniforcing.core.files import read_json

FLAGS_SCHEMA = 1


def printable(text: str) -> str:
    r"""Write the bytes of a name that is not UTF-8 as ``\xe9``, so that any file can hold it."""
    return re.sub("[\ud800-\udfff]", lambda found: _escaped(ord(found[0])), text)


def _escaped(surrogate: int) -> str:
    # Python reads a byte that is not UTF-8 as 0xDC00 + byte (PEP 383).
    is_byte = 0xDC80 <= surrogate <= 0xDCFF
    return f"\\x{surrogate - 0xDC00:02x}" if is_byte else f"\\u{surrogate:04x}"


@dataclass(frozen=True)
class Reject:
    """A file or clip that was left out.

    Bytes of its name that are not UTF-8 are written as ``printable`` writes them.

    Attributes:
        name: name of the file.
        start: start of the clip in the file, seconds; None for the whole file.
        reason: kind of the fault; rejects are counted by it.
        detail: what exactly is wrong.
    """

    name: str
    start: float | None
    reason: str
    detail: str

    def __post_init__(self) -> None:
        for name in ("name", "detail"):
            object.__setattr__(self, name, printable(getattr(self, name)))


def summary(rejects: list[Reject]) -> dict[str, Any]:
    """Return rejects for a manifest: each of them, and their number by reason."""
    counts = Counter(reject.reason for reject in rejects)
    return {
        "rejects": [asdict(reject) for reject in rejects],
        "reject_counts": dict(sorted(counts.items())),
    }


def counted(rejects: list[Reject]) -> str:
    """Write the number of rejects of each reason, and the first reject, for a message."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in summary(rejects)["reject_counts"].items())
    return f"{reasons}; the first is {rejects[0].name}: {rejects[0].detail}"


def refuse_share(rejects: list[Reject], accepted: int, most: float, what: str) -> None:
    """Raise if nothing is left, or if the share of rejects exceeds ``most``.

    Raises:
        OmniForcingError: with the count of each reason, and the first reject.
    """
    total = len(rejects) + accepted
    if accepted and len(rejects) <= most * total:
        return
    if not rejects:
        raise OmniForcingError(
            "data.no-clips", f"there are no {what}; check the config section clips"
        )
    reasons = counted(rejects)
    raise OmniForcingError(
        "data.too-many-rejects",
        f"{len(rejects)} of {total} {what} cannot be used "
        f"({reasons}); "
        f"mend them or raise clips.max_reject_share from {most:g}",
    )


def read_flags(file: Path) -> dict[tuple[str, int], str]:
    """Read the clips that ``omniforcing inspect --flags`` listed.

    Returns:
        Name of the file and number of the cut -> why the clip was flagged.

    Raises:
        OmniForcingError: if the file is no such list.
    """
    content = read_json(file)
    flags = content.get("flags") if isinstance(content, dict) else None
    if not isinstance(flags, list) or content.get("schema") != FLAGS_SCHEMA:
        raise OmniForcingError(
            "file.unknown-schema",
            f"{file} is no list of flagged clips of schema {FLAGS_SCHEMA}; "
            "write one with omniforcing inspect --flags",
        )
    wanted = {"name": str, "cut": int, "why": str}
    found = {}
    for number, flag in enumerate(flags, 1):
        for key, kind in wanted.items():
            value = flag.get(key) if isinstance(flag, dict) else None
            if not isinstance(value, kind):
                raise OmniForcingError(
                    "data.malformed-flags",
                    f"{file}, flag {number}: {key} is {quoted(value)}; write the list again with "
                    "omniforcing inspect --flags, or mend the flag",
                )
        found[flag["name"], flag["cut"]] = flag["why"]
    return found
