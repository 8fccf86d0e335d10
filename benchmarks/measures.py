"""Hold the measures without weights to the pocket world's truth.

`python -m benchmarks.measures SHARDS [--clips N]` shifts the sound of held-out clips by 0 to 320 ms
either way and prints for each shift the margin of event sync, which knows the world, next to
onset_motion_margin and av_offset, which do not; then for every measure without weights its rank
correlation with the margin of event sync over the shifts.

    --models         also over sets of clips of other quality: real ones, their codec's, those with
                     another clip's sound, and what the kept teacher and student make, in as many
                     steps as they were made for and in fewer; codec and latents lie next to SHARDS
    --videos FOLDER  also all measures of its videos as they are, with their sound late by 200 ms,
                     and with each other's sound, with the intervals that tell them apart
    --evaluated FILE instead, a run's models by its evaluate.metrics.json; SHARDS is not read
    --cost           instead, what each measure costs, each in a process of its own with one thread:
                     CPU time and rate of clips, CPU time of the figure with its interval, and peak
                     memory above that of the clips; `--weights FILE` adds those with weights
    --evaluation     instead, CPU time of what stage evaluate does with the kept teacher and student
                     (as all four models), without measures and with them, by turns
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.files import read_json
from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.core.pair import Media, Pair
from omniforcing.data.shards import read_shards
from omniforcing.data.sources import HELDOUT, TRAIN
from omniforcing.evaluation.evaluate import (
    DRIFT_FACTOR,
    EvaluationInputs,
    evaluate,
    prompts_and_seeds,
)
from omniforcing.evaluation.measures.base import Figure, measure_clips
from omniforcing.evaluation.measures.clips import Clip, read_clips
from omniforcing.evaluation.measures.curves import motion_curve, onset_curve
from omniforcing.evaluation.measures.encoders.weights import Weights
from omniforcing.evaluation.measures.registry import MEASURES, WITH_WEIGHTS, chosen_measures
from omniforcing.evaluation.nearest import TrainingClips, clip_descriptor
from omniforcing.evaluation.quality import audio_features, video_features
from omniforcing.evaluation.samplers import CAUSAL, MODELS, split_clips
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.stages.shared.factory import open_factory
from omniforcing.pocket.foundation import KEPT
from omniforcing.pocket.observe import observe
from omniforcing.pocket.sync import score_sync

SHIFTS_MS = (0, 40, 80, 160, 320)
LATE = 0.2  # seconds by which the videos' sound is shifted
SYNC = "event sync"
OFFSETS = ("av_offset", "av_drift")  # figures with a sign
Figures = dict[str, Figure | None]
Series = dict[str, Figures]


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


def figures(clips: Sequence[Clip], truth: bool = False) -> Figures:
    """Figures of all measures without weights, and of event sync where the truth is known."""
    found: Figures = {}
    if truth:
        seen = [observe(clip.media, clip.caption or "") for clip in clips]
        score = score_sync([o.seen.impacts for o in seen], [o.heard.impacts for o in seen]).pooled
        wide = 1.96 * score.margin_error
        found[SYNC] = Figure(score.margin, score.margin - wide, score.margin + wide, len(clips))
    rows = measure_clips(clips, chosen_measures()).rows
    return found | {row.measure.name: row.figure for row in rows}


def heldout(shards: Path, count: int) -> list[Clip]:
    """Read held-out clips."""
    clips = []
    for sample in islice(read_shards(shards, HELDOUT), count):
        clips.append(Clip(sample["key"], sample["media"], sample["caption"]))
    return clips


def shifted(clips: Sequence[Clip]) -> Series:
    """Figures at every shift of the sound."""
    series: Series = {}
    for shift in sorted({*SHIFTS_MS, *(-ms for ms in SHIFTS_MS)}):
        series[f"{shift} ms"] = figures(with_sound(clips, shift / 1000), truth=True)
    return series


def made(shards: Path, clips: Sequence[Clip], preset: str) -> Iterator[tuple[str, list[Clip]]]:
    """Sets of clips of other quality, with the same captions."""
    config = load_config(root=project_root(), preset=preset)
    factory = open_factory(config, shards.parent / "codec", shards.parent / "latents")
    one_step = replace(factory, student=replace(factory.student, sigmas=[1.0]))
    captions, seeds = prompts_and_seeds([clip.caption or "" for clip in clips], 1, config.seed)
    teacher, student = KEPT / "teacher", KEPT / "student"
    makers = {
        f"teacher, {config.teacher.sampler.steps} guided steps": (factory, "teacher", teacher),
        # What Stage I begins with: the teacher's weights, sampled as the student will be.
        f"teacher, {len(factory.student.sigmas)} steps": (factory, "bidirectional_dmd", teacher),
        f"student, {len(factory.student.sigmas)} steps": (factory, "self_forcing", student),
        "student, 1 step": (one_step, "self_forcing", student),
    }

    def named(media: Iterator[Media]) -> list[Clip]:
        return [Clip(clip.name, one, clip.caption) for clip, one in zip(clips, media, strict=True)]

    yield "real", list(clips)
    yield "codec", named(factory.reconstruct(clip.media) for clip in clips)
    yield "another's sound", with_sound(clips, other=1)
    for name, (maker, kind, folder) in makers.items():
        sampler = maker.sampler(kind, folder, config.clips.seconds)
        yield name, named(iter(sampler(captions, seeds)))


def table(series: Series, intervals: bool = False) -> str:
    """A line for each measure, a column for each set of clips."""
    wide = 28 if intervals else 12
    lines = [f"{'measure':<22}" + "".join(f"{name:>{wide}}" for name in series)]
    for measure in next(iter(series.values())):
        cells = []
        for found in series.values():
            figure = found[measure]
            cell = "-" if figure is None else f"{figure.value:.3g}"
            if intervals and figure is not None and figure.low is not None:
                cell += f" ({figure.low:.2g}, {figure.high:.2g})"
            cells.append(f"{cell:>{wide}}")
        lines.append(f"{measure:<22}" + "".join(cells))
    return "\n".join(lines)


def rank_correlations(series: Series) -> dict[str, float]:
    """Rank correlation of each measure with event sync; NaN where one does not change.

    Of an offset its distance from none is ranked: sync falls either way.
    """
    from scipy.stats import spearmanr

    def column(name: str) -> NDArray[np.float64]:
        row = [found[name] for found in series.values()]
        return np.array([figure.value if figure else np.nan for figure in row])

    truth, correlations = column(SYNC), {}
    for measure in next(iter(series.values())):
        values = column(measure).round(6)
        values = np.abs(values) if measure in OFFSETS else values
        known = ~np.isnan(values)
        if measure != SYNC:
            varied = len(set(values[known])) > 1
            rank = spearmanr(truth[known], values[known]).statistic if varied else np.nan
            correlations[measure] = float(rank)
    return correlations


def against_truth(shards: Path, count: int, preset: str | None) -> None:
    """Print the figures over the shifts, and over models if wished, and the rank correlations."""
    clips = heldout(shards, count)
    series = shifted(clips)
    print(f"{len(clips)} held-out clips, sound shifted\n{table(series)}", flush=True)
    columns = {"over shifts": rank_correlations(series)}
    if preset:
        of_models: Series = {}
        for name, changed in made(shards, clips, preset):
            of_models[name] = figures(changed, truth=True)
        print(f"\nsets of clips of the same captions\n{table(of_models, intervals=True)}")
        columns["over sets"] = rank_correlations(of_models)
        del of_models["another's sound"]
        columns["over models"] = rank_correlations(of_models)
    print(f"\n{'rank correlation':<22}" + "".join(f"{name:>15}" for name in columns))
    for measure in columns["over shifts"]:
        cells = (column[measure] for column in columns.values())
        print(f"{measure:<22}" + "".join(f"{cell:>15.2f}" for cell in cells))


def evaluated(file: Path) -> None:
    """Print the figures of a run's models, as its evaluation has them, and rank correlations."""
    series: Series = {}
    for name, model in read_json(file)["models"].items():
        if name != "shuffled":
            wide, value = 1.96 * model["sync_margin_error"], model["sync_margin"]
            found: Figures = {SYNC: Figure(value, value - wide, value + wide, model["clips"])}
            for measure, row in model["measures"].items():
                found[measure] = Figure(row["value"], row["low"], row["high"], row["n"])
            series[name] = found
    print(f"{table(series, intervals=True)}\n\n{'rank correlation':<22}")
    for measure, correlation in rank_correlations(series).items():
        print(f"{measure:<22}{correlation:>6.2f}")


def told_apart(folder: Path) -> None:
    """Print all measures of videos as they are, late, and with each other's sound."""
    clips = [clip for clip in read_clips(folder) if isinstance(clip, Clip)]
    series = {
        "as it is": figures(clips),
        f"late {1000 * LATE:g} ms": figures(with_sound(clips, LATE)),
        "another's": figures(with_sound(clips, other=1)),
    }
    print(f"\n{folder.name}: {len(clips)} clips\n{table(series, intervals=True)}")


class Timer:
    """CPU time of a block, ``ms``."""

    def __enter__(self) -> "Timer":
        self._began = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.ms = 1000 * (time.process_time() - self._began)


def peak() -> float:
    """Peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost_of(name: str, clips: Sequence[Clip], weights: Weights | None) -> str:
    """A line of what a measure costs; run in a process of its own.

    Curves that measures share are made here too, as if it were the only one.
    """
    before = peak()
    (measure,) = chosen_measures([name], weights)
    if measure.missing:
        return f"{name:<32}{measure.missing}"
    warm = replace(clips[0], embedded={})
    measure.observe(warm)  # what is made once is no cost of a clip
    with Timer() as looks:
        seen = [measure.observe(clip) for clip in clips]
    kept = [value for value in seen if value is not None]
    if not kept:
        return f"{name:<32}needs clips {measure.asks}"
    cells = [f"{looks.ms / len(clips):>12.1f}", f"{1000 * len(clips) / max(looks.ms, 1e-3):>10.1f}"]
    if len(kept) >= measure.least:
        with Timer() as figure:
            measure.figure(kept, kept)
        cells.append(f"{figure.ms:>10.1f}")
    else:
        cells.append(f"{'-':>10}")
    return f"{name:<32}" + "".join(cells) + f"{peak() - before:>10.0f}"


def of_evaluation(clips: Sequence[Clip]) -> str:
    """A line of what stage evaluate spends on looking at a clip besides."""
    before = peak()
    with Timer() as others:
        for clip in clips:
            observe(clip.media, clip.caption or "")
            video_features(clip.media.video)
            audio_features(clip.media.audio)
            clip_descriptor(clip.media)
    cells = f"{others.ms / len(clips):>12.1f}{1000 * len(clips) / others.ms:>10.1f}{'-':>10}"
    return f"{'(events, features, descriptors)':<32}{cells}{peak() - before:>10.0f}"


def all_at_once(clips: Sequence[Clip]) -> str:
    """A line of what all measures without weights cost together, their curves made once."""
    before, measures = peak(), chosen_measures()
    with Timer() as looks:
        for clip in clips:
            for measure in measures:
                measure.observe(clip)
    cells = f"{looks.ms / len(clips):>12.1f}{1000 * len(clips) / looks.ms:>10.1f}{'-':>10}"
    return f"{'(all without weights)':<32}{cells}{peak() - before:>10.0f}"


def cost(clips: Sequence[Clip], weights: Weights | None) -> None:
    """Print CPU time, rate and memory of each measure."""
    import torch

    torch.set_num_threads(1)
    import_module("scipy.optimize")  # what is imported or chosen once is no cost of a measure
    motion_curve(clips[0].media.video)
    onset_curve(clips[0].media.audio)
    # Nothing is opened here: what an encoder takes is its own process'.
    names = [kind.name for kind in (*MEASURES, *(WITH_WEIGHTS if weights else ()))]
    calls = [partial(cost_of, name, clips, weights) for name in names]
    calls += [partial(all_at_once, clips), partial(of_evaluation, clips)]
    size = "x".join(map(str, clips[0].media.video.shape[1:3]))
    print(f"{len(clips)} clips of {clips[0].seconds:g} s, {size}; one thread")
    heads = ("CPU ms/clip", "clips/s", "figure ms", "peak MB")
    print(f"{'':<32}{heads[0]:>12}" + "".join(f"{head:>10}" for head in heads[1:]))
    fork = multiprocessing.get_context("fork")
    for call in calls:
        process = fork.Process(target=_show, args=(call,))
        process.start()
        process.join()


def _show(call: Callable[[], str]) -> None:
    print(call(), flush=True)


def evaluation(shards: Path, count: int, preset: str, rounds: int) -> None:
    """Print what an evaluation costs without measures and with them."""
    import torch

    torch.set_num_threads(1)
    config = load_config(root=project_root(), preset=preset)
    factory = open_factory(config, shards.parent / "codec", shards.parent / "latents")
    kept = {name: KEPT / ("student" if name in CAUSAL else "teacher") for name in MODELS}
    short, long = config.clips.seconds, DRIFT_FACTOR * config.clips.seconds
    models = {name: factory.sampler(name, kept[name], short) for name in MODELS}
    rollouts = {name: factory.sampler(name, kept[name], long) for name in CAUSAL}
    heldout = split_clips(shards, HELDOUT, count)
    ratios = []
    for _ in range(rounds):
        spent = []
        for measures in ((), chosen_measures()):
            with tempfile.TemporaryDirectory() as work, Timer() as timer:
                training = TrainingClips.collect(
                    split_clips(shards, TRAIN, config.evaluate.train_clips), Path(work, "train")
                )
                evaluate(
                    EvaluationInputs(
                        heldout,
                        factory.reconstruct,
                        models,
                        rollouts,
                        Path(work),
                        config.evaluate,
                        config.seed,
                        measures,
                    ),
                    training,
                )
            spent.append(timer.ms / 1000)
        ratios.append(spent[1] / spent[0])
        print(
            f"{len(heldout.captions)} captions, {config.evaluate.seeds} seeds: "
            f"{spent[0]:.1f} CPU-s without measures, {spent[1]:.1f} with: {ratios[-1]:.3f} times",
            flush=True,
        )
    print(f"median: {np.median(ratios):.3f} times")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, nargs="?", help="output of stage shards")
    parser.add_argument("--clips", type=int, default=32, help="held-out clips [32]")
    parser.add_argument("--models", action="store_true", help="compare over models too")
    parser.add_argument("--preset", default="pocket", help="preset of SHARDS [pocket]")
    parser.add_argument("--videos", type=Path, help="a folder of any videos")
    parser.add_argument("--cost", action="store_true", help="measure what measures cost")
    parser.add_argument("--weights", type=Path, help="file that names weights, for --cost")
    parser.add_argument("--evaluation", action="store_true", help="measure what evaluate costs")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --evaluation [3]")
    parser.add_argument("--evaluated", type=Path, help="evaluate.metrics.json of a run")
    words = parser.parse_args()
    if words.evaluated:
        evaluated(words.evaluated)
        return
    if not words.shards:
        parser.error("name SHARDS, the output of stage shards, or a file with --evaluated")
    if words.evaluation:
        evaluation(words.shards, words.clips, words.preset, words.rounds)
        return
    if words.cost:
        weights = Weights.read(words.weights) if words.weights else None
        cost(heldout(words.shards, words.clips), weights)
        return
    against_truth(words.shards, words.clips, words.preset if words.models else None)
    if words.videos:
        told_apart(words.videos)


if __name__ == "__main__":
    run_command(main)
