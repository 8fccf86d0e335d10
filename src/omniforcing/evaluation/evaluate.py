"""Evaluate every model on the same held-out captions and seeds.

Real clips, their codec reconstructions and shuffled sounds are measured in the same way: they are
the ceiling and chance. Each set of clips is sampled, observed and kept in one folder of ``work``,
so an evaluation that was killed continues with the first set that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir
from omniforcing.core.pair import Media, Pair
from omniforcing.core.random import step_seed
from omniforcing.evaluation import quality
from omniforcing.evaluation.config import EvaluateConfig
from omniforcing.evaluation.measures.base import Measure, Observed
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.registry import chosen_measures
from omniforcing.evaluation.measures.tables import MeasuredSets, measure_sets
from omniforcing.evaluation.nearest import (
    DESCRIPTOR,
    NearestNeighbours,
    TrainingClips,
    clip_descriptor,
    memorisation,
    stack,
    threshold,
)
from omniforcing.evaluation.plots import draw_nearest, film_strip, save_media
from omniforcing.evaluation.summary import in_pocket_world, summarise, sync_of
from omniforcing.pocket.drift import measure_drift
from omniforcing.pocket.observe import (
    Clips,
    ObservationSet,
    load_observations,
    observe,
    save_observations,
)
from omniforcing.pocket.sync import TOLERANCE_MS

# Captions and seeds -> one clip for each pair, in order: frames uint8 [T, H, W, 3], samples float32
# [2, N].
Sampler = Callable[[list[str], list[int]], Iterable[Media]]

FILMS = "films.npy"
MEASURED = "measures.json"
NEAREST = "nearest.png"
DRIFT_FACTOR = 3  # length of the drift rollouts, in training clips: a third each to compare
PAGE_NEAREST = 4  # clips of the last model on the page, each with its nearest training clip


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        models: figures of each model and reference, as in ``metrics.json``.
        frechet: names of the features, and the distances that sampling alone amounts to.
        memorisation: name of the descriptor, number of training clips, and the held-out clips'
            distance and threshold that the models are measured against.
        offsets: for each model, sound minus picture of all matched impacts, in milliseconds.
        shown: index of each clip on the page -> caption.
        measured: the measures that know nothing of the pocket world.
    """

    models: dict[str, dict[str, Any]]
    frechet: dict[str, Any]
    memorisation: dict[str, Any]
    offsets: dict[str, list[float]]
    shown: dict[str, str]
    measured: MeasuredSets


@dataclass(frozen=True)
class EvaluationInputs:
    """Clips and models to evaluate, and the folder that keeps what is done.

    Attributes:
        heldout: at least 2 clips that no model was trained on; their captions are the prompts.
        codec: encodes and decodes one clip.
        models: for each model, a sampler of clips as long as the real ones; ``nearest.png`` in
            ``work`` shows the last model's clips that lie nearest to a training clip.
        rollouts: for the causal models, samplers of clips ``DRIFT_FACTOR`` times as long;
            not used without ``config.drift_clips``.
        work: scratch folder of this evaluation alone.
        config: seeds per caption, clips for drift and page.
        seed: seed of the whole evaluation.
        measures: those of any clips.
    """

    heldout: Clips
    codec: Callable[[Media], Media]
    models: Mapping[str, Sampler]
    rollouts: Mapping[str, Sampler]
    work: Path
    config: EvaluateConfig
    seed: int
    measures: Sequence[Measure] = field(default_factory=chosen_measures)

    @property
    def shown(self) -> list[int]:
        """Indices of the clips that the page shows."""
        return page_clips(self.heldout.captions, self.config.page_clips)

    @property
    def drifting(self) -> Mapping[str, Sampler]:
        """Samplers of the rollouts that are measured."""
        return self.rollouts if self.config.drift_clips else {}

    def sets(self) -> dict[str, Callable[[], ObservationSet]]:
        """Return every set of clips that is measured.

        Returns:
            Name of the set's folder -> function that observes the set, or reads what is there.

        Raises:
            OmniForcingError: if there are too few held-out clips.
        """
        captions, read = self.heldout.captions, self.heldout.read
        if len(captions) < 2:
            found = f"found {len(captions)}; raise clips.heldout, or add videos"
            raise OmniForcingError(
                "data.too-few-clips", f"an evaluation compares at least 2 held-out clips, {found}"
            )
        prompts, seeds = prompts_and_seeds(captions, self.config.seeds, self.seed)
        long = slice(self.config.drift_clips)
        last = list(self.models)[-1] if self.models else None
        sets: dict[str, Callable[[], ObservationSet]] = {
            "real": lambda: self._collect("real", read(), captions),
            "codec": lambda: self._collect("codec", map(self.codec, read()), captions),
            "shuffled": lambda: self._collect("shuffled", other_sounds(read()), captions),
        }
        for name, sampler in self.models.items():
            clips = _lazily(sampler, prompts, seeds)
            sets[name] = partial(self._collect, name, clips, prompts, films=name == last)
        for name, sampler in self.drifting.items():
            folder, some = rollout_of(name), prompts[long]
            clips = _lazily(sampler, some, seeds[long])
            sets[folder] = partial(self._collect, folder, clips, some, shown=(), measures=())
        return sets

    def _collect(
        self, name: str, media: Iterable[Media], captions: list[str], **options: Any
    ) -> ObservationSet:
        options = {"shown": self.shown, "label": name, "measures": self.measures, **options}
        return collect(media, captions, self.work / name, **options)


def rollout_of(name: str) -> str:
    """Return the name of the set of a model's long clips."""
    return f"{name}.rollout"


def evaluate(inputs: EvaluationInputs, training: TrainingClips) -> Evaluation:
    """Sample and observe every set that is not done yet, and measure all of them.

    Args:
        inputs: clips, models and scratch folder.
        training: clips that the models were trained on.

    Returns:
        Figures of all models and references.

    Raises:
        OmniForcingError: if there are too few held-out clips, or a sampler yields too few.
    """
    config, work, tolerance = inputs.config, inputs.work, TOLERANCE_MS / 1000
    sets = {name: observed() for name, observed in inputs.sets().items()}
    # Rollouts are longer than the real clips: only their drift is measured.
    rollouts = {name: sets.pop(rollout_of(name)) for name in inputs.drifting}
    reference, last = sets["real"], list(inputs.models)[-1] if inputs.models else None
    near = {name: training.nearest(observed.descriptors) for name, observed in sets.items()}
    results, syncs = {}, {}
    for name, observed in sets.items():
        figures = summarise(observed, reference, tolerance)
        results[name] = figures | memorisation(near[name], near["real"])
        if in_pocket_world(observed.clips):
            syncs[name] = sync_of(observed.clips, tolerance)
    if last:
        prompts, _ = prompts_and_seeds(inputs.heldout.captions, config.seeds, inputs.seed)
        _draw_nearest(work, last, prompts, near[last], training.clips)
    measured = measure_sets(
        {name: Observed.load(work / name / MEASURED) for name in sets}, inputs.measures
    )
    for name, figures in measured.figures.items():
        results[name]["measures"] = figures
    for name, sync in syncs.items():
        for row, part in zip(measured.clips[name], sync.pooled.of_clips(), strict=True):
            row |= part
    for name, observed in rollouts.items():
        if in_pocket_world(observed.clips):
            results[name] |= measure_drift(observed.clips, tolerance)
    return Evaluation(
        models=results,
        frechet=_frechet_settings(reference, len(inputs.heldout.captions) * config.seeds),
        memorisation={
            "descriptor": DESCRIPTOR,
            "training_clips": len(training.rows),
            "heldout_distance": float(np.median(near["real"].distance)),
            "threshold": threshold(near["real"]),
        },
        offsets={name: sync.offsets_ms for name, sync in syncs.items()},
        shown={str(index): inputs.heldout.captions[index] for index in inputs.shown},
        measured=measured,
    )


def prompts_and_seeds(captions: list[str], seeds: int, seed: int) -> tuple[list[str], list[int]]:
    """Return the prompts and noise seeds of every model's clips.

    Args:
        captions: captions of the held-out clips.
        seeds: how often every caption is sampled.
        seed: seed of the evaluation.

    Returns:
        All captions ``seeds`` times over, and a seed of its own for each.
    """
    prompts = captions * seeds
    return prompts, [step_seed(seed, index, "evaluate") for index in range(len(prompts))]


def page_clips(captions: list[str], count: int) -> list[int]:
    """Choose ``count`` clips for the page: the first of each caption, then the next ones."""
    first = [i for i, caption in enumerate(captions) if caption not in captions[:i]]
    rest = [i for i in range(len(captions)) if i not in first]
    return sorted((first + rest)[:count])


def other_sounds(clips: Iterator[Media]) -> Iterator[Media]:
    """Yield each clip's picture with the next clip's sound, the last with the first's."""
    first = earlier = next(clips)
    for clip in clips:
        yield Pair(earlier.video, clip.audio)
        earlier = clip
    yield Pair(earlier.video, first.audio)


def collect(
    media: Iterable[Media],
    captions: list[str],
    folder: Path,
    shown: Iterable[int] = (),
    label: str = "",
    films: bool = False,
    measures: Sequence[Measure] = (),
) -> ObservationSet:
    """Observe one clip per caption and keep the result in ``folder``.

    Args:
        media: clips in the order of ``captions``; not touched if ``folder`` exists.
        captions: what each clip was asked to show.
        folder: folder to write, whole or not at all.
        shown: indices of the clips that are kept as ``<index>.mp4`` and ``<index>.png``.
        label: label of the progress bar.
        films: whether to keep a few frames of every clip, ``[N, h, w, 3]`` in ``films.npy``.
        measures: what else observes the clips, kept in ``measures.json``.

    Returns:
        The observations, read from ``folder``.

    Raises:
        OmniForcingError: if there are fewer clips than captions.
    """
    if not folder.exists():
        with atomic_dir(folder) as unfinished:
            clips = _counted(media, captions, label)
            observed = _observe_all(clips, unfinished, set(shown), films, measures)
            save_observations(observed, unfinished)
    return load_observations(folder)


def _observe_all(
    clips: Iterator[tuple[str, Media]],
    folder: Path,
    shown: set[int],
    films: bool,
    measures: Sequence[Measure],
) -> ObservationSet:
    """Observe clips one at a time, so that only one is in memory."""
    observations, video, audio, descriptors, strips = [], [], [], [], []
    measured = Observed()
    for index, (caption, clip) in enumerate(clips):
        observations.append(observe(clip, caption))
        video.append(quality.video_features(clip.video))
        audio.append(quality.audio_features(clip.audio))
        descriptors.append(clip_descriptor(clip))
        measured.add(Clip(str(index), clip, caption), measures)
        if films:
            strips.append(film_strip(clip.video))
        if index in shown:
            save_media(folder / str(index), clip, observations[-1])
    if films:
        np.save(folder / FILMS, np.stack(strips))
    measured.save(folder / MEASURED)
    features = Pair(np.concatenate(video), np.concatenate(audio))
    return ObservationSet(observations, features, stack(descriptors))


def _counted(
    media: Iterable[Media], captions: list[str], label: str
) -> Iterator[tuple[str, Media]]:
    """Yield captions with their clips; fail if a clip is missing."""
    from tqdm import tqdm

    clips = iter(media)
    bar = tqdm(captions, desc=label or None, unit="clip", dynamic_ncols=True)
    for index, caption in enumerate(bar):
        clip = next(clips, None)
        if clip is None:
            raise OmniForcingError(
                "evaluation.wrong-count",
                f"{label or 'a sampler'} gave {index} clips for {len(captions)} "
                "captions, not one for each",
            )
        yield caption, clip


def _lazily(sampler: Sampler, prompts: list[str], seeds: list[int]) -> Iterator[Media]:
    """Yield a sampler's clips; it loads its model when the first clip is asked for."""
    yield from sampler(prompts, seeds)


def _draw_nearest(
    work: Path, model: str, prompts: list[str], neighbours: NearestNeighbours, training: Clips
) -> None:
    """Draw the clips of ``model`` that are most likely copies above the training clips they copy.

    Args:
        work: folder to write ``nearest.png`` into.
        model: name of the model, whose set holds films.
        prompts: prompt of each of its clips.
        neighbours: nearest training clip of each of its clips.
        training: clips that it was trained on.
    """
    chosen = np.argsort(neighbours.share, kind="stable")[:PAGE_NEAREST].tolist()
    # Every training clip is decoded once, and in the order of the shards.
    partners = sorted({int(neighbours.index[i]) for i in chosen})
    real = {}
    for index, clip in zip(partners, training.read(partners), strict=True):
        real[index] = film_strip(clip.video)
    films = np.load(work / model / FILMS, mmap_mode="r")
    pairs, titles = [], []
    for i in chosen:
        index, distance = int(neighbours.index[i]), neighbours.distance[i]
        pairs.append((films[i], real[index]))
        titles.append(
            f"{prompts[i]}: at {distance:.2f} from training clip {index}, "
            f"{neighbours.share[i]:.2f} of the mean to its ten nearest\n"
            f"(below: {training.captions[index]})"
        )
    draw_nearest(work / NEAREST, pairs, titles)


def _frechet_settings(reference: ObservationSet, count: int) -> dict[str, Any]:
    """Name the features, and estimate the distance that sampling ``count`` clips amounts to."""
    floors = reference.features.map(lambda rows: quality.floor(rows, len(reference.clips), count))
    return {
        "features": quality.FEATURES,
        "floor_video": floors.video,
        "floor_audio": floors.audio,
        "floor_clips": [count, len(reference.clips)],
    }
