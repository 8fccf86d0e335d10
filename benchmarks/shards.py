"""Processor time that stage `shards` takes for a clip, beside another checkout's.

    python -m benchmarks.shards --against ../before

A folder of videos as phones and cameras write them is cut into clips by the stage's own command, in
rounds that alternate between the checkouts, so that other work on the machine weighs on both alike.
Each round also packs one clip alone: what the stage takes before it begins is left out of what a
clip takes. Shown are user CPU seconds of a clip and clips per second of wall clock, least and
median of the rounds, and the ratio of the medians.

Videos:
    h264   768x480, 30 fps, H.264 with B-frames and AAC
    hevc   the same in HEVC
    small  256x160, 24 fps, H.264 and AAC
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.ingest.kinds import AAC, X264, Sources, ffmpeg
from benchmarks.start import Cost, measure
from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.environment import DATA_ROOT_VARIABLE

SECONDS, CLIP = 17.0, 4  # of a video, of a clip
X265 = "-c:v libx265 -preset superfast -x265-params log-level=none -tag:v hvc1"
# Name, coder, frames per second and size of each video, in times of the benchmark's picture.
VIDEOS = (
    ("h264", f"{X264} -crf 20 -bf 2", 30, 3),
    ("hevc", X265, 30, 3),
    ("small", f"{X264} -crf 20", 24, 1),
)


def write_videos(folder: Path, copies: int, only: Sequence[str]) -> None:
    """Write each kind of video ``copies`` times, and two files of one clip, with captions."""
    sources = Sources(folder / "sources")
    for part in ("sources", "many", "one"):
        (folder / part).mkdir()
    sound = sources.audio(seconds=SECONDS)
    for name, coder, fps, size in (video for video in VIDEOS if not only or video[0] in only):
        for copy in range(copies):
            path = folder / "many" / f"{name}-{copy}.mp4"
            # Each begins elsewhere, so that no two are the same.
            late = f"-ss {copy / 10} -i"
            ffmpeg(late, sources.video(fps, SECONDS, size), late, sound, coder, AAC, path)
            path.with_suffix(".txt").write_text(f"colours and numbers, {path.stem}")
    for number in range(2):  # one is held out from training
        path = folder / "one" / f"clip-{number}.mp4"
        length = f"-t {CLIP + 0.5 + number / 10}"
        first = min((folder / "many").glob("*.mp4"))
        ffmpeg("-i", first, f"{length} -c copy", path)
        path.with_suffix(".txt").write_text("colours and numbers")


def stage(name: str, videos: Path, size: tuple[int, int]) -> list[str]:
    """Arguments of the interpreter that run a stage over a folder of videos."""
    keys = [
        *("clips.source=folder", f"clips.folder={videos}", "clips.heldout=1"),
        *(f"clips.seconds={CLIP}", f"clips.height={size[0]}", f"clips.width={size[1]}"),
    ]
    return ["-m", "omniforcing", "stage", name, "--preset", "smoke", "clips.heldout_duets=0", *keys]


def clips_of(shards: Path) -> int:
    """Count the clips of a folder of shards."""
    return sum(json.loads((shards / "manifest.json").read_text())["clips"].values())


def compare(
    checkouts: Sequence[Path], folder: Path, rounds: int, size: tuple[int, int]
) -> dict[str, dict[str, list[tuple[Cost, int]]]]:
    """Cost and clips of each round by checkout and by ``one`` and ``many``."""
    found: dict[str, dict[str, list[tuple[Cost, int]]]] = {}
    for turn in range(rounds):
        for number, checkout in enumerate(checkouts):
            for part in ("one", "many"):
                root = folder / f"{part}-{number}"
                data = root / "data" / "smoke"
                variables = {DATA_ROOT_VARIABLE: str(root)}
                if not turn:
                    root.mkdir()
                    measure(stage("clips", folder / part, size), checkout, variables)
                shutil.rmtree(data / "shards", ignore_errors=True)
                cost = measure(stage("shards", folder / part, size), checkout, variables)
                costs = found.setdefault(str(checkout), {}).setdefault(part, [])
                costs.append((cost, clips_of(data / "shards")))
    return found


def table(found: dict[str, dict[str, list[tuple[Cost, int]]]]) -> str:
    """Write what a clip takes, a line for each checkout."""
    lines, medians = [], []
    for checkout, costs in found.items():
        users, speeds = [], []
        for (one, few), (many, all_clips) in zip(costs["one"], costs["many"], strict=True):
            users.append((many.user - one.user) / (all_clips - few))
            speeds.append((all_clips - few) / (many.wall - one.wall))
        medians.append(median(users))
        lines.append(
            f"{Path(checkout).name}: CPU seconds of a clip, least {min(users):.3f}, median "
            f"{medians[-1]:.3f}; clips per second, most {max(speeds):.2f}, median "
            f"{median(speeds):.2f}; {all_clips} clips, {len(users)} rounds; before the first "
            f"{min(one.user for one, _ in costs['one']):.1f} CPU seconds"
        )
    lines += [f"ratio of the medians: {medians[0] / last:.2f}" for last in medians[1:]]
    return "\n".join(lines)


def run() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1, help="videos of each kind")
    parser.add_argument("--only", nargs="*", default=[], help="kinds of videos")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=384)
    options = parser.parse_args()
    checkouts = [project_root(), *([options.against.resolve()] if options.against else [])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_videos(folder, options.copies, options.only)
        size = options.height, options.width
        print(table(compare(checkouts, folder, options.rounds, size)))


if __name__ == "__main__":
    sys.exit(run_command(run))
