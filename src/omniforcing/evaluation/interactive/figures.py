"""The interactive track: how soon recordings follow another prompt, and what they keep.

Seconds are counted from the first frame of the block with which a change took effect. A recording
is whole: the frame before its first second belongs to none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.core.pair import Media, Pair
from omniforcing.evaluation.interactive.judges import Judge

SCHEMA = 1
RIGHT = 0.5  # share of a second from which it counts as right
SCENE = (
    "mean absolute difference, in levels of 255, of the median frames of a second after a change "
    "and of the last one before it; chance: of the last ones before a change in two recordings"
)


@dataclass(frozen=True)
class Segment:
    """The part of a recording under one prompt.

    Attributes:
        prompt: the prompt.
        frame: its first frame.
        asked: second of the recording for which the change was asked; None for the first prompt.
    """

    prompt: str
    frame: int = 1
    asked: float | None = None


@dataclass(frozen=True)
class Recording:
    """A recorded stream.

    Attributes:
        media: frames uint8 ``[1+24K, H, W, 3]`` at 24 fps, samples float32 ``[2, 16000K]``.
        segments: what held when, in order.
    """

    media: Media
    segments: Sequence[Segment]

    def seconds(self, index: int) -> Iterator[Media]:
        """The whole seconds of segment ``index``, one after the other."""
        frame, end = self.segments[index].frame, len(self.media.video)
        if index + 1 < len(self.segments):
            end = self.segments[index + 1].frame
        for first in range(frame, end - FPS + 1, FPS):
            sample = round((first - 1) * SAMPLE_RATE / FPS)
            yield Pair(
                self.media.video[first : first + FPS],
                self.media.audio[:, sample : sample + SAMPLE_RATE],
            )

    def looked_at(self, index: int) -> list[Media]:
        """The seconds of segment ``index`` that count: of the first only the last, its state."""
        seconds = list(self.seconds(index))
        return seconds if index else seconds[-1:]


@dataclass(frozen=True)
class _Change:
    """What a judge says of one segment.

    Attributes:
        right: of each of its seconds, None where the judge cannot tell.
        delay: seconds from the request to the segment's first frame.
        returns: whether its prompt held earlier, before the one that it replaces.
    """

    right: list[float | None]
    delay: float
    returns: bool

    @property
    def first_right(self) -> float | None:
        """Seconds from the request to the first right second; None if there is none."""
        for second, right in enumerate(self.right):
            if right is not None and right >= RIGHT:
                return self.delay + second
        return None


def interactive(recordings: Sequence[Recording], judges: Sequence[Judge]) -> dict[str, Any]:
    """Make the figures of the interactive track.

    Args:
        recordings: the recordings.
        judges: who says what is right.

    Returns:
        For each judge: ``before``, how right the last second before a change is; ``after``, how
        right each second after one, with ``n``, the changes that it is known of; ``returned``,
        the mean of ``after`` over changes to a prompt that held earlier; ``first_right_s``, the
        median of seconds from a request to the first right second, and ``never``, the changes
        that have none. For the picture as a whole: ``scene``.
    """
    changes = sum(len(recording.segments) - 1 for recording in recordings)
    figures = {judge.name: _of_judge(judge, recordings) for judge in judges}
    return {
        "schema": SCHEMA,
        "recordings": len(recordings),
        "changes": changes,
        "judges": {name: found for name, found in figures.items() if found["n"]},
        "scene": _scene(recordings),
    }


def _of_judge(judge: Judge, recordings: Sequence[Recording]) -> dict[str, Any]:
    before: list[float] = []
    changes: list[_Change] = []
    for recording in recordings:
        judged = [_judged(judge, recording, index) for index in range(len(recording.segments))]
        before += [last[-1] for last in judged[:-1] if last and last[-1] is not None]
        for index, right in enumerate(judged[1:], 1):
            segment, earlier = recording.segments[index], recording.segments[: index - 1]
            delay = (segment.frame - 1) / FPS - (segment.asked or 0.0)
            returns = segment.prompt in {old.prompt for old in earlier}
            changes.append(_Change(right, delay, returns))
    known = [change for change in changes if any(right is not None for right in change.right)]
    after, counts = _second_by_second([change.right for change in known])
    returned = [right for c in known if c.returns for right in c.right if right is not None]
    first = [at for change in known if (at := change.first_right) is not None]
    return {
        "sense": judge.sense,
        "protocol": judge.protocol,
        "before": _mean(before),
        "after": after,
        "n": counts,
        "returned": _mean(returned),
        "first_right_s": float(np.median(first)) if first else None,
        "never": len(known) - len(first),
    }


def _judged(judge: Judge, recording: Recording, index: int) -> list[float | None]:
    prompt = recording.segments[index].prompt
    before = recording.segments[index - 1].prompt if index else None
    return [judge.right(second, prompt, before) for second in recording.looked_at(index)]


def _second_by_second(
    changes: Sequence[Sequence[float | None]],
) -> tuple[list[float | None], list[int]]:
    """Mean over changes of each second after them, and the number of changes that it is of."""
    means, counts = [], []
    for second in range(max((len(change) for change in changes), default=0)):
        values = [change[second] for change in changes if second < len(change)]
        known = [value for value in values if value is not None]
        means.append(_mean(known))
        counts.append(len(known))
    return means, counts


def _scene(recordings: Sequence[Recording]) -> dict[str, Any]:
    """How much of the picture a change leaves as it was: ``after`` it, second by second."""
    before: list[list[NDArray[np.float32]]] = []
    after: list[list[float | None]] = []
    for recording in recordings:
        scenes = [
            [_median_frame(second) for second in recording.looked_at(index)]
            for index in range(len(recording.segments))
        ]
        before.append([old[-1] for old in scenes[:-1] if old])
        for old, new in pairwise(scenes):
            if old:
                after.append([_distance(old[-1], scene) for scene in new])
    pairs = zip(before, before[1:] + before[:1], strict=True)
    chance = [
        _distance(mine[0], other[0])
        for mine, other in pairs
        if len(before) > 1 and mine and other and mine[0].shape == other[0].shape
    ]
    means, counts = _second_by_second(after)
    return {"protocol": SCENE, "after": means, "n": counts, "chance": _mean(chance)}


def _median_frame(second: Media) -> NDArray[np.float32]:
    frame: NDArray[np.float32] = np.median(second.video, axis=0).astype(np.float32)
    return frame


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).mean())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def table(figures: dict[str, Any]) -> str:
    """Format a line for each judge, and one for the scene; a column for each second.

    Args:
        figures: as ``interactive`` makes them; ``missing`` has why another judge could not judge.
    """
    rows = {**figures["judges"], "scene": figures["scene"]}
    seconds = max(len(row["after"]) for row in rows.values())
    heads = ["before", *(f"{second + 1}. s" for second in range(seconds)), "returned", "first s"]
    lines = [f"{figures['recordings']} recordings, {figures['changes']} changes", ""]
    lines.append(f"{'':<16}" + "".join(f"{head:>10}" for head in heads))
    for name, row in rows.items():
        after = [*row["after"], *[None] * (seconds - len(row["after"]))]
        cells = [row.get("before"), *after, row.get("returned"), row.get("first_right_s")]
        lines.append(f"{name:<16}" + "".join(f"{_number(cell):>10}" for cell in cells))
    chance = figures["scene"]["chance"]
    lines += ["", f"scene, of another recording: {_number(chance)}", "", "how each is taken:"]
    lines += [f"  {name}: {row['protocol']}" for name, row in rows.items()]
    if figures.get("missing"):
        lines += ["", "not judged:"]
        lines += [f"  {name}: {why}" for name, why in figures["missing"].items()]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
