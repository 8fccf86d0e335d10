"""Summarise a set of observed clips in the figures of ``metrics.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omniforcing.evaluation.quality import frechet
from omniforcing.pocket.observe import Observation, ObservationSet
from omniforcing.pocket.sync import Sync, score_sync

CLIP_TABLE = "clips.json"  # of all clips, in the folder that stage evaluate writes


def in_pocket_world(clips: Sequence[Observation]) -> bool:
    """Return whether any caption names a ball's colour, without which no event can be judged."""
    return any(clip.colours for clip in clips)


def sync_of(clips: Sequence[Observation], tolerance: float) -> Sync:
    """Score the sync of the clips' impacts, which match within ``tolerance`` seconds."""
    seen = [clip.seen.impacts for clip in clips]
    heard = [clip.heard.impacts for clip in clips]
    return score_sync(seen, heard, tolerance)


def summarise(
    observed: ObservationSet, reference: ObservationSet, tolerance: float
) -> dict[str, Any]:
    """Compute every figure of one model.

    Args:
        observed: its clips.
        reference: real held-out clips, from which Frechet distances are measured.
        tolerance: seconds within which impacts match.

    Returns:
        Figures by name, those of the pocket world only for its clips; an offset without a matched
        impact is None.
    """
    clips = observed.clips
    distances = observed.features.map(frechet, reference.features)
    return {
        "clips": len(clips),
        "frechet_video": distances.video,
        "frechet_audio": distances.audio,
        **(pocket_world(clips, tolerance) if in_pocket_world(clips) else {}),
    }


def pocket_world(clips: Sequence[Observation], tolerance: float) -> dict[str, Any]:
    """Compute the figures of the pocket world: sync, balls, colours and tones.

    Args:
        clips: observations of its clips.
        tolerance: seconds within which impacts match.
    """
    sync = sync_of(clips, tolerance)
    return {
        "sync_f1": sync.pooled.f1,
        "sync_f1_shuffled": sync.pooled.shuffled_f1,
        "sync_margin": sync.pooled.margin,
        "sync_margin_error": sync.pooled.margin_error,
        "sync_margin_strict": sync.strict.margin,
        "sync_precision": sync.precision,
        "sync_recall": sync.recall,
        "sync_offset_ms": sync.offset_ms,
        "sync_offset_signed_ms": sync.offset_signed_ms,
        "events_video": sync.events_video,
        "events_audio": sync.events_audio,
        "ball_present": float(np.mean([np.mean(clip.seen.present) for clip in clips])),
        "colour_accuracy": float(np.mean([colour_score(clip) for clip in clips])),
        "pitch_accuracy": float(np.mean([pitch_score(clip) for clip in clips])),
    }


def colour_score(clip: Observation) -> float:
    """Return the share of the caption's colours that the picture shows; 0 if it names none."""
    return _share_in(clip.colours, clip.seen.colours)


def pitch_score(clip: Observation) -> float:
    """Return the share of impacts heard with a tone of the caption; 0 if none is heard."""
    return _share_in(clip.heard.colours, clip.colours)


def _share_in(colours: list[str], expected: list[str]) -> float:
    """Return the share of ``colours`` that are in ``expected``; 0 of none."""
    return float(np.mean([colour in expected for colour in colours])) if colours else 0.0
