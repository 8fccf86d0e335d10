"""Long clips and streams, measured part by part: does sync or quality get worse on the way?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import write_json
from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.core.pair import Pair
from omniforcing.evaluation.measures.base import Measure, Measured, Observed, figures_of
from omniforcing.evaluation.measures.clips import Clip, Skipped
from omniforcing.evaluation.measures.tables import about, figure_of

SCHEMA = 1


def parts_of(clip: Clip, seconds: int) -> Iterator[Clip]:
    """Cut a clip into parts of whole seconds; what is left at its end is dropped.

    A part has the first frame of the next one too, as every clip has a frame before its seconds.
    """
    frames, samples = seconds * FPS, seconds * SAMPLE_RATE
    for part in range(int(clip.seconds) // seconds):
        video = clip.media.video[part * frames : (part + 1) * frames + 1]
        audio = clip.media.audio[:, part * samples : (part + 1) * samples]
        yield Clip(clip.name, Pair(video, audio), clip.caption)


def measure_parts(
    clips: Iterable[Clip | Skipped], measures: Sequence[Measure], seconds: int
) -> list[Measured]:
    """Measure the first parts of all clips, the second ones, and so on.

    Args:
        clips: the clips.
        measures: what to measure; a distance compares with the first parts.
        seconds: length of a part.

    Raises:
        OmniForcingError: if no clip is as long as two parts.
    """
    observed: list[Observed] = []
    for clip in clips:
        if isinstance(clip, Skipped):
            continue
        for index, part in enumerate(parts_of(clip, seconds)):
            if index == len(observed):
                observed.append(Observed())
            observed[index].add(part, measures)
    if len(observed) < 2:
        raise OmniForcingError(
            "evaluation.too-short",
            f"no clip lasts {2 * seconds} s, so there are no two parts of {seconds} s to compare; "
            "measure longer ones or lower --every",
        )
    return [figures_of(part, measures, observed[0]) for part in observed]


def progress_table(measured: Sequence[Measured], seconds: int) -> str:
    """A line for each measure, a column for each part."""
    heads = [f"{index * seconds}-{(index + 1) * seconds} s" for index in range(len(measured))]
    lines = [f"{'measure':<30}" + "".join(f"{head:>12}" for head in heads)]
    lines.append(f"{'clips':<30}" + "".join(f"{len(part.clips):>12}" for part in measured))
    for index, row in enumerate(measured[0].rows):
        cells = []
        for part in measured:
            figure = part.rows[index].figure
            cells.append("-" if figure is None else f"{figure.value:.3f}")
        lines.append(f"{row.measure.name:<30}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def save_progress(measured: Sequence[Measured], seconds: int, file: Path) -> None:
    """Write the figures of all parts as JSON."""
    rows = measured[0].rows
    content = {
        "schema": SCHEMA,
        "seconds": seconds,
        "protocols": {row.measure.name: about(row.measure) for row in rows},
        "parts": [{r.measure.name: figure_of(r, {}) for r in part.rows} for part in measured],
    }
    write_json(file, content)
