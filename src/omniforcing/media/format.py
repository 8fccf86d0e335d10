"""Format of a conformed clip; imports nothing, so that configs can name it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipFormat:
    """Format of a conformed clip: height and width in pixels, length in whole seconds."""

    height: int
    width: int
    seconds: int
