"""The teacher at several guidance scales: sync, colours and tones of held-out captions, one row per scale.

``python -m benchmarks.guidance --preset pocket --scales 1 1.5 2 3`` reads what the pipeline wrote below ``data/pocket``. The
scale that a preset uses (``teacher.sampler.guidance``) is chosen from this table.
"""

import argparse
import sys
from dataclasses import replace

from tqdm import tqdm

from omniforcing.config import Config, Weights, load_config, project_root
from omniforcing.console import run_command
from omniforcing.data.sources import HELDOUT
from omniforcing.errors import OmniForcingError
from omniforcing.metrics.bench import Bench, split_clips
from omniforcing.metrics.evaluate import plan
from omniforcing.metrics.events import colours_in
from omniforcing.metrics.observe import observe
from omniforcing.metrics.summary import pocket_world
from omniforcing.ops.training import set_threads

SHOWN = (
    *("sync_margin", "sync_margin_error", "sync_offset_ms", "events_video", "events_audio"),
    *("ball_present", "colour_accuracy", "pitch_accuracy"),
)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pocket", help="whose data to use (default: pocket)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0], help="guidance of both streams")
    parser.add_argument("--clips", type=int, default=64, help="held-out captions (default: 64)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    arguments = parser.parse_args()

    def measure() -> None:
        set_threads(arguments.threads)
        config = load_config(root=project_root(), preset=arguments.preset)
        print(f"{'guidance':<10}" + "".join(f"{name:>19}" for name in SHOWN))
        for scale in arguments.scales:
            found = at_scale(config, scale, arguments.clips)
            print(f"{scale:<10}" + "".join(f"{format_number(found[name]):>19}" for name in SHOWN), flush=True)

    sys.exit(run_command(measure))


def format_number(value: float | None) -> str:
    """Three decimals, or a dash where nothing was matched."""
    return "-" if value is None else f"{value:.3f}"


def at_scale(config: Config, scale: float, clips: int) -> dict[str, float | None]:
    """The pocket world's measures of the teacher's clips at a guidance scale, other noise than the evaluation's."""
    data = project_root() / "data" / config.preset
    sampler = replace(config.teacher.sampler, guidance=Weights(scale, scale))
    bench = Bench.open(replace(config, teacher=replace(config.teacher, sampler=sampler)), data / "codec", data / "latents")
    captions = split_clips(data / "shards", HELDOUT, clips).captions
    if not any(map(colours_in, captions)):
        raise OmniForcingError(f"{data / 'shards'} holds no clips of the pocket world, which alone can be measured so")
    draw = bench.draw("teacher", data / "teacher", config.clips.seconds)
    media = bench.media(draw, *plan(captions, 1, config.seed + 1))
    observed = [observe(*both) for both in tqdm(zip(media, captions, strict=True), f"guidance {scale}", len(captions))]
    return pocket_world(observed, config.evaluate.tolerance_ms / 1000)


if __name__ == "__main__":
    main()
