"""Drift: does a rollout longer than any training clip stay in sync and keep its ball?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omniforcing.pocket.observe import Observation
from omniforcing.pocket.sync import WindowScore, score_windows

PARTS = 3


def measure_drift(clips: Sequence[Observation], tolerance: float) -> dict[str, Any]:
    """Sync and ball presence along clips of one length.

    ``drift_margin`` is the sync margin in the last third; ``drift`` holds the margin per third and per second with its
    standard error, and the share of frames with a ball per third. Chance is taken within the same window, from the same
    time of other clips.
    """
    seconds = clips[0].seconds
    seen, heard = [clip.seen.impacts for clip in clips], [clip.heard.impacts for clip in clips]
    thirds = score_windows(seen, heard, tolerance, np.linspace(0, seconds, PARTS + 1).tolist())
    curve = score_windows(seen, heard, tolerance, list(range(int(seconds) + 1)))
    return {
        "drift_margin": thirds[-1].margin,
        "drift": {
            "clips": len(clips),
            "seconds": seconds,
            "thirds": _curve(thirds),
            "per_second": _curve(curve),
            "ball_present_thirds": [float(part.mean()) for part in _present(clips)],
        },
    }


def _curve(windows: list[WindowScore]) -> dict[str, list[float]]:
    return {
        "margin": [w.margin for w in windows],
        "error": [w.margin_error for w in windows],
        "f1": [w.f1 for w in windows],
    }


def _present(clips: Sequence[Observation]) -> list[Any]:
    return np.array_split(np.array([clip.seen.present for clip in clips], float), PARTS, axis=1)
