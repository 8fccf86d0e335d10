"""All measures, in the order of the table."""

from __future__ import annotations

from collections.abc import Sequence

from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.evaluation.measures import picture, sound, together
from omniforcing.evaluation.measures.base import Measure
from omniforcing.evaluation.measures.encoders import (
    distances,
    motion,
    similarity,
    speech,
    sync,
)
from omniforcing.evaluation.measures.encoders.weights import Weights, WithWeights

MEASURES: tuple[type[Measure], ...] = (
    *(together.OnsetMotionMargin, together.OnsetMotionF1, together.OnsetMotionChance),
    *(together.AvOffset, together.AvDrift),
    *(picture.Motion, picture.FrozenShare, picture.Flicker),
    *(sound.Loudness, sound.SilentShare, sound.ClippedShare, sound.Flatness),
)
WITH_WEIGHTS: tuple[type[WithWeights], ...] = (
    *(similarity.ClipTextVideo, similarity.ClapTextAudio, similarity.DinoSubject),
    *(sync.PeAudioVideo, sync.JavisPe, similarity.PeTextVideo, similarity.PeTextAudio),
    *(speech.WordErrors, motion.DynamicDegree),
    *(sync.DesyncFirstLast, sync.DesyncAllWindows, sync.AvPair, sync.JavisPair),
    *(distances.FrechetVjepa, distances.MmdVjepa, distances.FrechetClap, distances.MmdClap),
    distances.FvdI3d,
)


def chosen_measures(names: Sequence[str] = (), weights: Weights | None = None) -> list[Measure]:
    """Make the measures of these names.

    Args:
        names: names; if empty, all measures that need no weights, and with ``weights`` all.
        weights: where weights lie; a measure whose weights are not among them says so.

    Raises:
        OmniForcingError: for a name that no measure has.
    """
    known = {kind.name: kind for kind in (*MEASURES, *WITH_WEIGHTS)}
    for name in names:
        if name not in known:
            raise OmniForcingError(
                "evaluation.unknown-measure",
                f"there is no measure {name!r}{did_you_mean(name, known)}; "
                f"there are {', '.join(known)}",
            )
    chosen: list[Measure] = [kind() for kind in MEASURES if not names or kind.name in names]
    if names or weights:
        place = weights or Weights()
        chosen += [kind(place) for kind in WITH_WEIGHTS if not names or kind.name in names]
    return chosen
