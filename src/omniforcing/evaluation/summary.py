"""The numbers of ``metrics.json``: a set of observed clips in, named figures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omniforcing.evaluation.quality import frechet
from omniforcing.pocket.observe import Observation, ObservationSet
from omniforcing.pocket.sync import Sync, score_sync


def in_pocket_world(clips: Sequence[Observation]) -> bool:
    """Whether the captions name the pocket world's colours, without which its measures mean nothing."""
    return any(clip.colours for clip in clips)


def sync_of(clips: Sequence[Observation], tolerance: float) -> Sync:
    """Score the clips' impacts; ``tolerance`` in seconds."""
    return score_sync(
        [clip.seen.impacts for clip in clips], [clip.heard.impacts for clip in clips], tolerance
    )


def summarise(
    observed: ObservationSet, reference: ObservationSet, tolerance: float
) -> dict[str, Any]:
    """Every measure of one model; Frechet distances are from ``reference``, the real held-out clips.

    A figure that does not apply (an offset without a match, balls in another world) is None.
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
    """The measures that need the pocket world: sync, balls, colours and tones; ``tolerance`` in seconds."""
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
    """The share of the caption's colours that the picture shows."""
    return (
        float(np.mean([colour in clip.seen.colours for colour in clip.colours]))
        if clip.colours
        else 0.0
    )


def pitch_score(clip: Observation) -> float:
    """The share of impacts heard whose tone belongs to a colour of the caption; 0 if nothing is heard."""
    return (
        float(np.mean([colour in clip.colours for colour in clip.heard.colours]))
        if clip.heard.colours
        else 0.0
    )
