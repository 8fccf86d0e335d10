"""Hold the measures without weights to the pocket world's truth.

`python -m benchmarks.measures SHARDS [--clips N] [--videos FOLDER]` shifts the sound of held-out
clips by 0 to 320 ms either way and prints for each shift the margin of event sync, which knows the
world, next to onset_motion_margin and av_offset, which do not; then the rank correlation of the two
margins. With FOLDER it prints all measures of its videos as they are, with their sound late by
200 ms, and with each other's sound. With `--cost` it prints instead what each measure costs: CPU
time of a clip, and of the figure of the set with its interval, one thread; and what stage evaluate
spends on looking at a clip otherwise.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from omniforcing.core.console import run_command
from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.core.pair import Pair
from omniforcing.data.shards import read_shards
from omniforcing.data.sources import HELDOUT
from omniforcing.evaluation.measures.base import measure_clips
from omniforcing.evaluation.measures.clips import Clip, read_clips
from omniforcing.evaluation.measures.curves import motion_curve, onset_curve
from omniforcing.evaluation.measures.registry import chosen_measures
from omniforcing.evaluation.nearest import clip_descriptor
from omniforcing.evaluation.quality import audio_features, video_features
from omniforcing.pocket.observe import observe
from omniforcing.pocket.sync import score_sync

SHIFTS_MS = (0, 40, 80, 160, 320)
LATE = 0.2  # seconds by which the videos' sound is shifted


def with_sound(clips: Sequence[Clip], shift: float = 0.0, other: int = 0) -> list[Clip]:
    """Clips whose sound is late by ``shift`` seconds, or that of the clip ``other`` places on."""
    changed = []
    for index, clip in enumerate(clips):
        sound = clips[(index + other) % len(clips)].media.audio
        count = clip.media.audio.shape[1]
        fitted = np.resize(np.roll(sound, round(shift * SAMPLE_RATE), 1), (2, count))
        if sound.shape[1] >= count:
            fitted = np.roll(sound, round(shift * SAMPLE_RATE), 1)[:, :count]
        changed.append(Clip(clip.name, Pair(clip.media.video, fitted), clip.caption))
    return changed


def figures(clips: Sequence[Clip], names: Sequence[str]) -> dict[str, float]:
    """Figures of the measures named; NaN where there is none."""
    rows = measure_clips(clips, chosen_measures(names)).rows
    return {row.measure.name: row.figure.value if row.figure else np.nan for row in rows}


def heldout(shards: Path, count: int) -> list[Clip]:
    """Read held-out clips."""
    clips = []
    for sample in islice(read_shards(shards, HELDOUT), count):
        clips.append(Clip(sample["key"], sample["media"], sample["caption"]))
    return clips


def against_truth(shards: Path, count: int) -> None:
    """Print both margins over the shifts, and their rank correlation."""
    from scipy.stats import spearmanr

    clips = heldout(shards, count)
    margins = []
    print(f"{'shift ms':>9}{'event sync':>12}{'onset_motion':>14}{'av_offset ms':>14}")
    for shift in sorted({*SHIFTS_MS, *(-ms for ms in SHIFTS_MS)}):
        moved = with_sound(clips, shift / 1000)
        seen = [observe(clip.media, clip.caption or "") for clip in moved]
        truth = score_sync([o.seen.impacts for o in seen], [o.heard.impacts for o in seen])
        found = figures(moved, ["onset_motion_margin", "av_offset"])
        margins.append((truth.pooled.margin, found["onset_motion_margin"]))
        print(
            f"{shift:>9}{margins[-1][0]:>12.3f}{margins[-1][1]:>14.3f}{found['av_offset']:>14.1f}",
            flush=True,
        )
    print(
        f"rank correlation of the margins: {spearmanr(*zip(*margins, strict=True)).statistic:.2f}"
    )


def told_apart(folder: Path) -> None:
    """Print all measures of videos as they are, late, and with each other's sound."""
    clips = [clip for clip in read_clips(folder) if isinstance(clip, Clip)]
    series = {
        "as it is": clips,
        f"late {1000 * LATE:g} ms": with_sound(clips, LATE),
        "another's": with_sound(clips, other=1),
    }
    found = {name: figures(changed, ()) for name, changed in series.items()}
    print(f"\n{folder.name}: {len(clips)} clips")
    print(f"{'measure':<22}" + "".join(f"{name:>14}" for name in series))
    for measure in next(iter(found.values())):
        print(f"{measure:<22}" + "".join(f"{row[measure]:>14.3f}" for row in found.values()))


def cost(clips: Sequence[Clip]) -> None:
    """Print CPU time and memory of each measure."""
    import torch

    torch.set_num_threads(1)
    measure_clips(clips[:2], chosen_measures())  # what loads or is made once is no cost of a clip
    print(f"{'of one clip, CPU ms':<30}{'clip':>8}{'figure':>10}")
    total = 0.0
    with Timer() as onsets:
        for clip in clips:
            onset_curve(clip.media.audio)
    with Timer() as motions:
        for clip in clips:
            motion_curve(clip.media.video)
    for name, timer in (("onsets (shared)", onsets), ("motion (shared)", motions)):
        total += timer.ms
        print(f"{name:<30}{timer.ms / len(clips):>8.2f}")
    for clip in clips:
        _ = clip.onsets, clip.motion, clip.luma
    for measure in chosen_measures():
        with Timer() as looks:
            seen = [measure.observe(clip) for clip in clips]
        with Timer() as figure:
            measure.figure([value for value in seen if value is not None], [])
        total += looks.ms
        print(f"{measure.name:<30}{looks.ms / len(clips):>8.2f}{figure.ms:>10.1f}")
    print(f"{'all measures':<30}{total / len(clips):>8.2f}")
    with Timer() as others:  # what stage evaluate does with each clip besides
        for clip in clips:
            observe(clip.media, clip.caption or "")
            video_features(clip.media.video)
            audio_features(clip.media.audio)
            clip_descriptor(clip.media)
    print(f"{'events, features, descriptors':<30}{others.ms / len(clips):>8.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak:.0f} MB, with {len(clips)} clips in it")


class Timer:
    """CPU time of a block, ``ms``."""

    def __enter__(self) -> "Timer":
        self._began = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.ms = 1000 * (time.process_time() - self._began)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, help="output of stage shards of preset pocket")
    parser.add_argument("--clips", type=int, default=32, help="held-out clips [32]")
    parser.add_argument("--videos", type=Path, help="a folder of any videos")
    parser.add_argument("--cost", action="store_true", help="measure what measures cost")
    words = parser.parse_args()
    if words.cost:
        cost(heldout(words.shards, words.clips))
        return
    against_truth(words.shards, words.clips)
    if words.videos:
        told_apart(words.videos)


if __name__ == "__main__":
    run_command(main)
