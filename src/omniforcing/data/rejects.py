"""Rejects: files and clips that cannot be used, with the reason, and their share."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from omniforcing.core.errors import OmniForcingError


@dataclass(frozen=True)
class Reject:
    """A file or clip that was left out.

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


def summary(rejects: list[Reject]) -> dict[str, Any]:
    """Return rejects for a manifest: each of them, and their number by reason."""
    counts = Counter(reject.reason for reject in rejects)
    return {
        "rejects": [asdict(reject) for reject in rejects],
        "reject_counts": dict(sorted(counts.items())),
    }


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
    reasons = ", ".join(f"{n} {reason}" for reason, n in summary(rejects)["reject_counts"].items())
    first = rejects[0]
    raise OmniForcingError(
        "data.too-many-rejects",
        f"{len(rejects)} of {total} {what} cannot be used "
        f"({reasons}; the first is {first.name}: {first.detail}); "
        f"mend them or raise clips.max_reject_share from {most:g}",
    )
