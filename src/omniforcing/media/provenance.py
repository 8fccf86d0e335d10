"""What a clip says of where it came from: its marks, and its signature."""

from __future__ import annotations

from pathlib import Path

from omniforcing.media.marking import read_marks
from omniforcing.media.signing import read_signature


def describe(path: Path) -> str:
    """Say in a table what a clip says of how it was made, and who signed it.

    Raises:
        OmniForcingError: if the file cannot be read.
    """
    marks = read_marks(path)
    # IPTC's other words for what no camera saw are algorithmicMedia and composites with either.
    machine = marks.get("digital_source_type", "").lower().endswith("algorithmicmedia")
    verdict = "says that a machine made it" if machine else "does not say that a machine made it"
    lines = [f"{path} {verdict}"]
    if signature := read_signature(path):
        marks["signature"] = signature
    lines += [f"  {name.replace('_', ' '):<20}{value}" for name, value in marks.items()]
    return "\n".join(lines)
