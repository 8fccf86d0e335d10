"""Measure how soon a stream follows another prompt, block by block after the switch.

`python -m benchmarks.steering [FOLDER]` rolls out held-out captions of one ball, then switches to a
held-out caption of another colour. A row per way to switch (`switch` keeps what the student
remembers, `rewrite` rewrites it) and figure, a column per block:

    colour  share of blocks whose picture has the new colour
    tone    share of impacts heard with the new colour's tone
    ball    share of frames with one whole ball
    jump    mean absolute difference of the frames where the block begins, over the median of
            neighbouring frames before the switch
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import trange

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import TextFeatures, concatenate
from omniforcing.core.layout import FPS
from omniforcing.core.pair import Media
from omniforcing.data.sources import HELDOUT
from omniforcing.distill.sampling import rollout_config
from omniforcing.evaluation.report import format_number
from omniforcing.evaluation.samplers import split_clips
from omniforcing.model.rollout import Rollout
from omniforcing.model.weights.student import load_model
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.stages.shared.factory import open_factory
from omniforcing.pocket.events import colours_in, detect_audio_events, detect_video_events
from omniforcing.streaming.generation import Generation

WAYS = {"switch": False, "rewrite": True}  # whether the cache is rewritten for the new prompt


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="the student's weights (default: the preset's self_forcing)",
    )
    parser.add_argument(
        "--preset", default="pocket", help="whose data and settings to use (default: pocket)"
    )
    parser.add_argument("--clips", type=int, default=64, help="rollouts (default: 64)")
    parser.add_argument(
        "--before", type=int, default=6, help="blocks before the switch (default: 6)"
    )
    parser.add_argument("--after", type=int, default=6, help="blocks from it on (default: 6)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    arguments = parser.parse_args()

    def run() -> None:
        torch.set_num_threads(arguments.threads)
        results = measure(
            arguments.preset, arguments.folder, arguments.clips, arguments.before, arguments.after
        )
        print(json.dumps(results) if arguments.json else table(results))

    sys.exit(run_command(run))


def measure(
    preset: str, folder: Path | None, count: int, before: int, after: int
) -> dict[str, Any]:
    """Measure each way to switch; return its figures, with a value for every block after it.

    Args:
        preset: whose data and settings to use.
        folder: the student's weights; None: the preset's.
        count: rollouts.
        before: blocks before the switch.
        after: blocks from the switch on.

    Raises:
        OmniForcingError: if the data are not of the pocket world.
    """
    config = load_config(root=project_root(), preset=preset)
    data = project_root() / "data" / config.preset
    captions = [
        c
        for c in split_clips(data / "shards", HELDOUT, 10 * count).captions
        if len(colours_in(c)) == 1
    ]
    pairs = [(old, new) for n, old in enumerate(captions) if (new := _other(captions, n))][:count]
    if not pairs:
        raise OmniForcingError(
            "benchmarks.not-pocket",
            f"{data / 'shards'} holds no clips of the pocket world, which alone can be measured so",
        )
    factory = open_factory(config, data / "codec", data / "latents")
    student = config.student
    weights = folder or data / "self_forcing"
    model = load_model(weights, student.sinks, factory.device, stabiliser=student.stabiliser).eval()
    rollout = rollout_config(student, config.clips.latent_counts, factory.grid)
    spans = student.table.blocks(before + after)

    def text(captions: list[str]) -> TextFeatures:
        return factory.text.of(captions).map(lambda x: x.to(factory.device))

    def roll(old: list[str], new: list[str], seed: int, rewrite: bool) -> list[Media]:
        generator = torch.Generator(factory.device).manual_seed(seed)
        generation = Generation(
            lambda features: Rollout(model, features, rollout, generator), text(old)
        )
        blocks = [generation.next() for _ in range(before)]
        generation.change_prompt(text(new), rewrite)
        return list(
            factory.decoded(concatenate(blocks + [generation.next() for _ in range(after)]))
        )

    result: dict[str, Any] = {"rollouts": len(pairs), "switch at block": before}
    colours, size = [colours_in(new)[0] for _, new in pairs], config.evaluate.batch
    for name, rewrite in WAYS.items():
        media: list[Media] = []
        for start in trange(0, len(pairs), size, desc=name, leave=False):
            befores, afters = (
                [pair[side] for pair in pairs[start : start + size]] for side in (0, 1)
            )
            media += roll(befores, afters, config.seed + 1 + start, rewrite)
        result[name] = _figures(
            media, colours, [(span.frames.start, span.frames.stop) for span in spans], before
        )
    return result


def _other(captions: list[str], index: int) -> str | None:
    """Return the next caption of another colour."""
    later = captions[index + 1 :] + captions[:index]
    return next((c for c in later if colours_in(c) != colours_in(captions[index])), None)


def _figures(
    media: list[Media], colours: list[str], spans: list[tuple[int, int]], before: int
) -> dict[str, list[float | None]]:
    frames = np.stack([np.asarray(clip.video) for clip in media])
    moved = np.abs(np.diff(frames.astype(np.float32), axis=1)).mean((2, 3, 4))  # [N, T-1]
    usual = np.median(moved[:, : spans[before][0] - 1])
    seen = [[detect_video_events(clip[slice(*span)]) for span in spans[before:]] for clip in frames]
    heard = [detect_audio_events(clip.audio) for clip in media]
    right: list[list[bool]] = [[] for _ in spans[before:]]
    for colour, sounds in zip(colours, heard, strict=True):
        for time, tone in zip(sounds.impacts, sounds.colours, strict=True):
            for block, (start, stop) in zip(right, spans[before:], strict=True):
                if start <= time * FPS < stop:
                    block.append(tone == colour)
    each = range(len(spans) - before)
    return {
        "colour": [
            float(np.mean([row[n].colours == [c] for row, c in zip(seen, colours, strict=True)]))
            for n in each
        ],
        "tone": [float(np.mean(block)) if block else None for block in right],
        "ball": [float(np.mean([row[n].present for row in seen])) for n in each],
        "jump": [float(np.mean(moved[:, spans[before + n][0] - 1]) / usual) for n in each],
    }


def table(results: dict[str, Any]) -> str:
    """Format a row per way and figure, a column per block."""
    ways = {name: figures for name, figures in results.items() if isinstance(figures, dict)}
    count = len(next(iter(next(iter(ways.values())).values())))
    lines = [f"{'block after the switch':<24}" + "".join(f"{n + 1:>9}" for n in range(count))]
    for way, figures in ways.items():
        lines += [
            f"{way + ', ' + name:<24}" + "".join(f"{format_number(v):>9}" for v in row)
            for name, row in figures.items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
