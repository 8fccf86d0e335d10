"""Every model on the same held-out captions and seeds, beside real clips, codec reconstructions and shuffled sounds.

Each set of clips is sampled, observed and kept as one folder of ``work``; an evaluation that was killed goes on with the
first set that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir
from omniforcing.core.latents import Media, Pair
from omniforcing.core.random import step_seed
from omniforcing.evaluation import quality
from omniforcing.evaluation.config import EvaluateConfig
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

# One clip for each caption and seed, in order: frames uint8 [T, H, W, 3], samples float32 [2, N].
Sampler = Callable[[list[str], list[int]], Iterable[Media]]

FILMS = "films.npy"
NEAREST = "nearest.png"
DRIFT_FACTOR = 3  # length of the drift rollouts, in training clips: a third each to compare
PAGE_NEAREST = 4  # clips of the last model on the page, each with its nearest training clip


@dataclass(frozen=True)
class Evaluation:
    """``models`` of ``metrics.json``, what its distances were measured with, and what plots and page need beside them."""

    models: dict[str, dict[str, Any]]
    frechet: dict[str, Any]  # features, and their floor
    memorisation: dict[
        str, Any
    ]  # descriptor, training clips, and the held-out clips' figures that others are measured by
    offsets: dict[str, list[float]]
    shown: dict[str, str]  # index of a clip -> caption


@dataclass(frozen=True)
class EvaluationInputs:
    """What is evaluated, and where the sets that are done lie.

    Attributes:
        heldout: at least 2 clips that no model was trained on; their captions are the models' prompts.
        codec: encodes and decodes one clip.
        models: samplers of clips of the real ones' length, by name; ``nearest.png`` in ``work`` shows the last one's clips
            that lie nearest to a training clip.
        rollouts: samplers of clips ``DRIFT_FACTOR`` times as long, for the models that can go on; unused without
            ``config.drift_clips``.
        work: scratch folder, which belongs to this evaluation alone.
        config: seeds per caption, clips for drift and page.
        seed: of the whole evaluation.
    """

    heldout: Clips
    codec: Callable[[Media], Media]
    models: Mapping[str, Sampler]
    rollouts: Mapping[str, Sampler]
    work: Path
    config: EvaluateConfig
    seed: int

    @property
    def shown(self) -> list[int]:
        """The clips that the page shows."""
        return page_clips(self.heldout.captions, self.config.page_clips)

    @property
    def drifting(self) -> Mapping[str, Sampler]:
        """The rollouts that are measured."""
        return self.rollouts if self.config.drift_clips else {}

    def sets(self) -> dict[str, Callable[[], ObservationSet]]:
        """Every set of clips by the name of its folder, each a function that observes it or reads what is there.

        Raises:
            OmniForcingError: if there are too few held-out clips.
        """
        captions, read = self.heldout.captions, self.heldout.read
        if len(captions) < 2:
            found = f"found {len(captions)}; raise clips.heldout"
            raise OmniForcingError(
                "data.too-few-clips", f"an evaluation compares at least 2 held-out clips, {found}"
            )
        prompts, seeds = prompts_and_seeds(captions, self.config.seeds, self.seed)
        long = slice(self.config.drift_clips)
        last = list(self.models)[-1] if self.models else None
        return {
            "real": lambda: self._collect("real", read(), captions),
            "codec": lambda: self._collect("codec", map(self.codec, read()), captions),
            "shuffled": lambda: self._collect("shuffled", other_sounds(read()), captions),
            **{
                name: partial(
                    self._collect,
                    name,
                    _lazily(sampler, prompts, seeds),
                    prompts,
                    films=name == last,
                )
                for name, sampler in self.models.items()
            },
            **{
                rollout_of(name): partial(
                    self._collect,
                    rollout_of(name),
                    _lazily(sampler, prompts[long], seeds[long]),
                    prompts[long],
                    shown=(),
                )
                for name, sampler in self.drifting.items()
            },
        }

    def _collect(
        self, name: str, media: Iterable[Media], captions: list[str], **options: Any
    ) -> ObservationSet:
        return collect(
            media, captions, self.work / name, **{"shown": self.shown, "label": name, **options}
        )


def rollout_of(name: str) -> str:
    """The set of a model's long clips."""
    return f"{name}.rollout"


def evaluate(inputs: EvaluationInputs, training: TrainingClips) -> Evaluation:
    """Sample and measure everything that the inputs' folder does not hold yet; ``training`` are the clips trained on.

    Raises:
        OmniForcingError: if there are too few held-out clips, or a sampler yields too few.
    """
    config, work, tolerance = inputs.config, inputs.work, TOLERANCE_MS / 1000
    everything = {name: observed() for name, observed in inputs.sets().items()}
    sets = {
        name: observed
        for name, observed in everything.items()
        if name not in map(rollout_of, inputs.drifting)
    }
    reference, last = sets["real"], list(inputs.models)[-1] if inputs.models else None
    near = {name: training.nearest(observed.descriptors) for name, observed in sets.items()}
    results = {
        name: summarise(observed, reference, tolerance) | memorisation(near[name], near["real"])
        for name, observed in sets.items()
    }
    if last:
        prompts, _ = prompts_and_seeds(inputs.heldout.captions, config.seeds, inputs.seed)
        _draw_nearest(work, last, prompts, near[last], training.clips)
    for name in inputs.drifting:
        clips = everything[rollout_of(name)].clips
        if in_pocket_world(clips):
            results[name] |= measure_drift(clips, tolerance)
    return Evaluation(
        models=results,
        frechet=_features(reference, len(inputs.heldout.captions) * config.seeds),
        memorisation={
            "descriptor": DESCRIPTOR,
            "training_clips": len(training.rows),
            "heldout_distance": float(np.median(near["real"].distance)),
            "threshold": threshold(near["real"]),
        },
        offsets={
            n: sync_of(s.clips, tolerance).offsets_ms
            for n, s in sets.items()
            if in_pocket_world(s.clips)
        },
        shown={str(index): inputs.heldout.captions[index] for index in inputs.shown},
    )


def prompts_and_seeds(captions: list[str], seeds: int, seed: int) -> tuple[list[str], list[int]]:
    """The prompts and noise seeds of every model's clips: all captions once, then all again, each time other seeds."""
    prompts = captions * seeds
    return prompts, [step_seed(seed, index, "evaluate") for index in range(len(prompts))]


def page_clips(captions: list[str], count: int) -> list[int]:
    """Which clips the page shows: the first of each caption until there are ``count``, then the next ones."""
    first = [i for i, caption in enumerate(captions) if caption not in captions[:i]]
    rest = [i for i in range(len(captions)) if i not in first]
    return sorted((first + rest)[:count])


def other_sounds(clips: Iterator[Media]) -> Iterator[Media]:
    """Each clip's picture with the next clip's sound, the last with the first's."""
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
) -> ObservationSet:
    """Observe one clip per caption and keep the result in ``folder``; if that exists, ``media`` is not touched.

    Args:
        media: clips in the order of ``captions``.
        captions: what each clip was asked to show.
        folder: written whole or not at all.
        shown: indices whose mp4 and spectrogram are kept too, as ``<index>.mp4`` and ``<index>.png``.
        label: of the progress bar.
        films: whether a few frames of every clip are kept too, ``[N, h, w, 3]`` in ``films.npy``.

    Raises:
        OmniForcingError: if there are fewer clips than captions.
    """
    if not folder.exists():
        with atomic_dir(folder) as partial:
            save_observations(
                _observe_all(_counted(media, captions, label), partial, set(shown), films), partial
            )
    return load_observations(folder)


def _observe_all(
    clips: Iterator[tuple[str, Media]], folder: Path, shown: set[int], films: bool
) -> ObservationSet:
    observations, video, audio, descriptors, strips = [], [], [], [], []
    for index, (caption, clip) in enumerate(clips):
        observations.append(observe(clip, caption))
        video.append(quality.video_features(clip.video))
        audio.append(quality.audio_features(clip.audio))
        descriptors.append(clip_descriptor(clip))
        if films:
            strips.append(film_strip(clip.video))
        if index in shown:
            save_media(folder / str(index), clip, observations[-1])
    if films:
        np.save(folder / FILMS, np.stack(strips))
    return ObservationSet(
        observations, Pair(np.concatenate(video), np.concatenate(audio)), stack(descriptors)
    )


def _counted(
    media: Iterable[Media], captions: list[str], label: str
) -> Iterator[tuple[str, Media]]:
    from tqdm import tqdm

    clips = iter(media)
    for index, caption in enumerate(
        tqdm(captions, desc=label or None, unit="clip", dynamic_ncols=True)
    ):
        clip = next(clips, None)
        if clip is None:
            raise OmniForcingError(
                "evaluation.wrong-count",
                f"{label or 'a sampler'} gave {index} clips for {len(captions)} captions, not one for each",
            )
        yield caption, clip


def _lazily(sampler: Sampler, prompts: list[str], seeds: list[int]) -> Iterator[Media]:
    """The sampler's clips, without calling it before the first is wanted."""
    yield from sampler(prompts, seeds)


def _draw_nearest(
    work: Path, model: str, prompts: list[str], found: NearestNeighbours, training: Clips
) -> None:
    """Draw the clips of ``model`` nearest to a training clip, each above it, as ``nearest.png``."""
    chosen = np.argsort(found.share, kind="stable")[:PAGE_NEAREST].tolist()
    partners = sorted({int(found.index[i]) for i in chosen})
    real = {
        index: film_strip(clip.video)
        for index, clip in zip(partners, training.read(partners), strict=True)
    }
    films = np.load(work / model / FILMS, mmap_mode="r")
    titles = [
        f"{prompts[i]}: at {found.distance[i]:.2f} from training clip {found.index[i]}, {found.share[i]:.2f} of the mean "
        f"to its ten nearest\n(below: {training.captions[int(found.index[i])]})"
        for i in chosen
    ]
    draw_nearest(work / NEAREST, [(films[i], real[int(found.index[i])]) for i in chosen], titles)


def _features(reference: ObservationSet, count: int) -> dict[str, Any]:
    """What distances are measured with, and what sampling alone amounts to for a model of ``count`` clips."""
    floors = reference.features.map(lambda rows: quality.floor(rows, len(reference.clips), count))
    return {
        "features": quality.FEATURES,
        "floor_video": floors.video,
        "floor_audio": floors.audio,
        "floor_clips": [count, len(reference.clips)],
    }
