"""Commands that measure: clips of any origin, two evaluations, streams that are steered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from omniforcing.cli.command import Command
from omniforcing.cli.streaming import engine_options
from omniforcing.core.console import visible

if TYPE_CHECKING:
    from omniforcing.evaluation.measures.command import Source
    from omniforcing.streaming.command import EngineOptions

_PATH = click.Path(path_type=Path)


def _names(
    _context: click.Context, _parameter: click.Parameter, words: str | None
) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (words or "").split(",") if name.strip())
    if words is not None and not names:
        raise click.BadParameter("name at least one measure, or leave it out for all of them")
    return names


@click.command(
    cls=Command,
    examples=(
        "omniforcing measure my-videos",
        "omniforcing measure data/pocket/evaluation/clips/self_forcing --against my-videos",
        "omniforcing measure data/pocket/shards --clips 64 --measures onset_motion_margin,loudness",
        "omniforcing measure my-videos --against real --weights weights.yaml",
        "omniforcing measure data/pocket/artifact --captions captions.txt --seconds 60 --every 10",
        "omniforcing measure data/pocket/artifact --against data/pocket/shards --clips 16",
    ),
)
@click.argument(
    "folder", type=_PATH, help="Videos, the output of stage shards, or an artifact to make clips."
)
@click.option("--against", type=_PATH, help="Another folder, whose figures stand next to these.")
@click.option(
    "--measures",
    "names",
    metavar="NAME,...",
    callback=_names,
    help="Measures to take.  [default: all]",
)
@click.option(
    "--weights",
    "weights_file",
    type=_PATH,
    help="YAML file that names pretrained weights by path and sha256, for more measures.",
)
@click.option("--clips", "most", type=click.IntRange(1), help="Stop after so many of a folder.")
@click.option("--json", "json_file", type=_PATH, help="Write all figures, of each clip too, here.")
@click.option(
    "--captions",
    type=_PATH,
    help="Text file with a caption in each line for an artifact.  [default: the held-out captions "
    "of the shards in --against]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    help="Length of an artifact's clips.  [default: as it was trained]",
)
@click.option("--seed", type=int, help="Seed of an artifact's clips.  [default: 0]")
@click.option(
    "--every",
    type=click.IntRange(1),
    metavar="SECONDS",
    help="Measure long clips part by part, each so long: does anything get worse on the way?",
)
@click.option("--device", default="cpu", help="Where to compute: cpu, cuda, cuda:1, ...")
def measure(
    folder: Path,
    against: Path | None,
    names: tuple[str, ...],
    weights_file: Path | None,
    most: int | None,
    json_file: Path | None,
    captions: Path | None,
    seconds: float | None,
    seed: int | None,
    every: int | None,
    device: str,
) -> None:
    """Measure sync, picture and sound of clips, without truth; with --weights captions too.

    Files of any rate and size are read as stage shards reads them; longer ones count as several
    clips of ten seconds. An artifact makes a clip for each caption.
    """
    from omniforcing.core.distributed import check_device
    from omniforcing.evaluation.measures.command import Source, measure_sources
    from omniforcing.evaluation.measures.encoders.weights import Weights
    from omniforcing.evaluation.measures.progress import (
        measure_parts,
        progress_table,
        save_progress,
    )
    from omniforcing.evaluation.measures.registry import chosen_measures
    from omniforcing.pipeline.experiments.generated import (
        captions_for,
        generated_clips,
        is_artifact,
    )

    for_artifacts = {"--captions": captions, "--seconds": seconds, "--seed": seed}
    if not any(map(is_artifact, filter(None, (folder, against)))):
        _refuse(folder, [name for name, value in for_artifacts.items() if value is not None])
    check_device(device)

    def source(place: Path, shards: Path | None) -> Source:
        if not is_artifact(place):
            return Source.of_folder(place, most)
        wanted = captions_for(captions, shards, most)
        return Source(str(place), generated_clips(place, wanted, seconds, seed or 0, device))

    weights = Weights.read(weights_file, device) if weights_file else None
    measures = chosen_measures(names, weights)
    other = source(against, folder) if against else None
    if every:
        parts = measure_parts(
            source(folder, against).clips, measures, every, other.clips if other else None
        )
        if json_file:
            save_progress(parts, every, json_file)
        print(progress_table(parts, every))
        return
    print(visible(measure_sources(source(folder, against), measures, other, json_file)))


def _refuse(folder: Path, options: Sequence[str]) -> None:
    from omniforcing.core.errors import OmniForcingError

    if options:
        raise OmniForcingError(
            "option.conflict",
            f"{' and '.join(options)} shape the clips that an artifact makes, and {folder} holds "
            "clips already; leave them out (captions of videos lie in their folder)",
        )


@click.command(
    cls=Command,
    examples=(
        "omniforcing compare data/pocket/evaluation ../other/data/pocket/evaluation",
        "omniforcing compare data/pocket/evaluation data/small/evaluation --out compared.html",
    ),
)
@click.argument("first", type=_PATH, help="Output of stage evaluate.")
@click.argument("second", type=_PATH, help="Another one.")
@click.option(
    "--out",
    type=_PATH,
    default=Path("compare.html"),
    show_default=True,
    help="Page to write; it plays the clips where they lie.",
)
def compare(first: Path, second: Path, out: Path) -> None:
    """Compare two evaluations, clip by clip."""
    from omniforcing.evaluation.measures import compare as page

    models = page.compare(first, second, out)
    pairs = sum(len(model["paired"]) for model in models.values())
    print(f"{out}: {len(models)} models, {pairs} measures with paired differences")


@click.command(
    cls=Command,
    examples=(
        "omniforcing play scenarios.yaml --out recordings",
        "omniforcing play scenarios.jsonl --artifact data/pocket/artifact --out recordings "
        "--weights weights.yaml",
    ),
)
@click.argument(
    "scenarios", type=_PATH, help="YAML, JSON or JSON lines: streams and their changes."
)
@click.option(
    "--out", "folder", type=_PATH, required=True, help="Folder for recordings and receipts."
)
@click.option(
    "--weights",
    "weights_file",
    type=_PATH,
    help="YAML file that names CLIP and CLAP by path and sha256, to judge with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as json.")
@engine_options
def play(
    scenarios: Path,
    folder: Path,
    weights_file: Path | None,
    as_json: bool,
    engine: EngineOptions,
) -> None:
    """Play scenarios of timed prompt changes, and measure how soon the streams follow.

    Each scenario leaves one recording and its receipts: which block, at which second, took each
    change. A run that was killed goes on.
    """
    from omniforcing.evaluation.measures.encoders.weights import Weights
    from omniforcing.pipeline.experiments.play import measure_recordings, table
    from omniforcing.pipeline.experiments.play import play as play_all
    from omniforcing.pipeline.experiments.scenario import read_scenarios
    from omniforcing.streaming.command import open_engine

    wanted = read_scenarios(scenarios)
    weights = Weights.read(weights_file, engine.device) if weights_file else None
    play_all(open_engine(engine), wanted, folder)
    figures = measure_recordings(folder, wanted, weights)
    print(json.dumps(figures) if as_json else table(figures))
