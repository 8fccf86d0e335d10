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
    clips: Iterable[Clip | Skipped],
    measures: Sequence[Measure],
    seconds: int,
    against: Iterable[Clip | Skipped] | None = None,
) -> list[Measured]:
    """Measure the first parts of all clips, the second ones, and so on.

    Args:
        clips: the clips.
        measures: what to measure.
        seconds: length of a part.
        against: clips whose parts distances compare with; None for the first parts. They are read
            only if there is a distance.

    Returns:
        A set of figures for each part; the first has the files that could not be measured.

    Raises:
        OmniForcingError: if no clip is as long as two parts.
    """
    observed: list[Observed] = []
    skipped: list[Skipped] = []
    for clip in clips:
        if isinstance(clip, Skipped):
            skipped.append(clip)
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
    observed[0].skipped = skipped
    reference = observed[0] if against is None else _reference(against, measures, seconds)
    return [figures_of(part, measures, reference) for part in observed]


def _reference(
    clips: Iterable[Clip | Skipped], measures: Sequence[Measure], seconds: int
) -> Observed:
    """All parts of other clips, as one set."""
    reference = Observed()
    distances = [each for each in measures if each.needs_reference and not each.missing]
    if distances:
        for clip in clips:
            if isinstance(clip, Clip):
                for part in parts_of(clip, seconds):
                    reference.add(part, distances)
    return reference


def progress_table(measured: Sequence[Measured], seconds: int) -> str:
    """A line for each measure, a column for each part; under them why there is no figure."""
    heads = [f"{index * seconds}-{(index + 1) * seconds} s" for index in range(len(measured))]
    lines = [f"{'measure':<30}" + "".join(f"{head:>12}" for head in heads)]
    lines.append(f"{'clips':<30}" + "".join(f"{len(part.clips):>12}" for part in measured))
    missing: list[str] = []
    for index, row in enumerate(measured[0].rows):
        cells = []
        for part in measured:
            figure = part.rows[index].figure
            cells.append("-" if figure is None else f"{figure.value:.3f}")
        lines.append(f"{row.measure.name:<30}" + "".join(f"{cell:>12}" for cell in cells))
        parts = [(head, part.rows[index].why) for head, part in zip(heads, measured, strict=True)]
        if all(why == row.why for _, why in parts):
            parts = [("all", row.why)]
        missing += [f"  {row.measure.name}, {head}: {why}" for head, why in parts if why]
    if missing:
        lines += ["", "no figure:", *missing]
    skipped = measured[0].skipped
    if skipped:
        lines += ["", f"not measured: {len(skipped)}"]
        lines += [f"  {file.name}: {file.why}" for file in skipped]
    return "\n".join(lines)


def save_progress(measured: Sequence[Measured], seconds: int, file: Path) -> None:
    """Write the figures of all parts as JSON."""
    rows = measured[0].rows
    content = {
        "schema": SCHEMA,
        "seconds": seconds,
        "protocols": {row.measure.name: about(row.measure) for row in rows},
        "skipped": [vars(file) for file in measured[0].skipped],
        "parts": [{r.measure.name: figure_of(r, {}) for r in part.rows} for part in measured],
    }
    write_json(file, content)
