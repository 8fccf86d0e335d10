"""What FFmpeg attaches to a frame beside its pixels."""

from __future__ import annotations

from typing import Any


def side_data(frame: Any, kind: str) -> bytes | None:
    """Return a frame's side datum of a kind, by PyAV's name; None if it has none.

    One of another kind that PyAV cannot name (18.1) hides it.
    """
    try:
        return bytes(frame.side_data[kind])
    except (KeyError, ValueError):
        return None
