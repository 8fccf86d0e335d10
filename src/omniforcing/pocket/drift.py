"""Drift: sync and ball presence along rollouts that are longer than any training clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omniforcing.pocket.observe import Observation
from omniforcing.pocket.sync import WindowScore, score_windows

THIRDS = 3


def measure_drift(clips: Sequence[Observation], tolerance: float) -> dict[str, Any]:
    """Measure sync and ball presence along clips of one length.

    Chance is taken within each window, from the same time of other clips.

    Args:
        clips: at least two observations.
        tolerance: seconds within which two impacts match.

    Returns:
        ``drift_margin``, the sync margin in the last third, and ``drift``: margin with its standard
        error and F1, per third and per second, and the share of frames with a ball per third.

    Raises:
        OmniForcingError: with fewer than 2 clips.
    """
    seconds = clips[0].seconds
    seen = [clip.seen.impacts for clip in clips]
    heard = [clip.heard.impacts for clip in clips]
    thirds = score_windows(seen, heard, tolerance, np.linspace(0, seconds, THIRDS + 1).tolist())
    curve = score_windows(seen, heard, tolerance, list(range(int(seconds) + 1)))
    return {
        "drift_margin": thirds[-1].margin,
        "drift": {
            "clips": len(clips),
            "seconds": seconds,
            "thirds": _curve(thirds),
            "per_second": _curve(curve),
            "ball_present_thirds": [float(third.mean()) for third in _present(clips)],
        },
    }


def _curve(windows: list[WindowScore]) -> dict[str, list[float]]:
    return {
        "margin": [w.margin for w in windows],
        "error": [w.margin_error for w in windows],
        "f1": [w.f1 for w in windows],
    }


def _present(clips: Sequence[Observation]) -> list[Any]:
    """Split ball presence ``[N, T]`` along time into thirds."""
    return np.array_split(np.array([clip.seen.present for clip in clips], float), THIRDS, axis=1)
