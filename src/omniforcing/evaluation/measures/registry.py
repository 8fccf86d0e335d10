"""All measures, in the order of the table."""

from __future__ import annotations

from collections.abc import Sequence

from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.evaluation.measures import picture, sound, together
from omniforcing.evaluation.measures.base import Measure

MEASURES: tuple[type[Measure], ...] = (
    *(together.OnsetMotionMargin, together.OnsetMotionF1, together.OnsetMotionChance),
    *(together.AvOffset, together.AvDrift),
    *(picture.Motion, picture.FrozenShare, picture.Flicker),
    *(sound.Loudness, sound.SilentShare, sound.ClippedShare, sound.Flatness),
)


def chosen_measures(names: Sequence[str] = ()) -> list[Measure]:
    """Make the measures of these names; all of them if none is named.

    Raises:
        OmniForcingError: for a name that no measure has.
    """
    known = {kind.name: kind for kind in MEASURES}
    for name in names:
        if name not in known:
            raise OmniForcingError(
                "evaluation.unknown-measure",
                f"there is no measure {name!r}{did_you_mean(name, known)}; "
                f"there are {', '.join(known)}",
            )
    return [kind() for kind in MEASURES if not names or kind.name in names]
