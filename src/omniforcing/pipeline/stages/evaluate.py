"""Stage evaluate: measure every model on the same held-out captions and seeds, and write a page.

A killed run keeps the sets of clips that it has finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from omniforcing.core.files import read_json
from omniforcing.data.sources import DUETS, HELDOUT, TRAIN
from omniforcing.data.work import Done
from omniforcing.evaluation.curves import REFERENCES, Curves, stage_curves
from omniforcing.evaluation.evaluate import DRIFT_FACTOR, EvaluationInputs, Sampler, evaluate
from omniforcing.evaluation.measures.encoders.weights import Weights
from omniforcing.evaluation.measures.registry import chosen_measures
from omniforcing.evaluation.measures.tables import clip_records
from omniforcing.evaluation.nearest import TrainingClips
from omniforcing.evaluation.report import DUETS_FOLDER, write_report
from omniforcing.evaluation.samplers import CAUSAL, MODELS, SamplerFactory, split_clips
from omniforcing.evaluation.summary import CLIP_TABLE
from omniforcing.pipeline.cluster.local import LocalPool, process_count
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.factory import open_factory
from omniforcing.pipeline.stages.shared.speed import against_the_teacher
from omniforcing.pocket.observe import Clips
from omniforcing.pocket.sync import TOLERANCE_MS

# Duets are the harder split: they compare the teacher with the student after all stages.
ON_DUETS = (MODELS[0], MODELS[-1])
NORM_PREFIX = "largest_gradient_norm_"
ARTIFACTS = "evaluation"  # folder of a run's artifacts
PAGE_DUETS = 3  # videos per model of clips of two balls: half as many as of the others


@dataclass(frozen=True)
class EvaluationPaths:
    """Paths and settings of an evaluation, which another process can open.

    Attributes:
        config: the whole configuration.
        inputs: output folders of the stages that are read, by stage.
        folder: folder for finished sets of clips.
    """

    config: Config
    inputs: dict[str, Path]
    folder: Path

    @classmethod
    def from_stage(cls, stage: Stage) -> EvaluationPaths:
        """Build them from the running stage."""
        names = ("codec", "latents", "shards", *MODELS)
        return cls(stage.config, {name: stage.input(name) for name in names}, stage.work / "sets")

    def clips(self, split: str) -> Clips:
        """Open the clips of a split that are evaluated."""
        settings = self.config.evaluate
        count = settings.train_clips if split == TRAIN else settings.clips
        return split_clips(self.inputs["shards"], split, count)

    def factory(self) -> SamplerFactory:
        """Open codec and text features, which turn models into samplers."""
        return open_factory(self.config, self.inputs["codec"], self.inputs["latents"])

    def training(self) -> TrainingClips:
        """Observe the clips that the models were trained on, or read their finished set."""
        return TrainingClips.collect(self.clips(TRAIN), self.folder / "train")

    def evaluations(self) -> tuple[EvaluationInputs, EvaluationInputs | None]:
        """Return the evaluation of the held-out clips, and that of the duets.

        The first covers every model, the second the teacher and the last student. The second is
        None with fewer than two duets.
        """
        config, settings, factory = self.config, self.config.evaluate, self.factory()

        def samplers(names: Sequence[str], seconds: int) -> dict[str, Sampler]:
            return {name: factory.sampler(name, self.inputs[name], seconds) for name in names}

        weights = settings.weights
        named = Weights.read(Path(weights), config.trainer.device) if weights else None
        measures = chosen_measures((), named)
        seconds = config.clips.seconds
        long = samplers(CAUSAL, DRIFT_FACTOR * seconds)
        heldout, models = self.clips(HELDOUT), samplers(MODELS, seconds)
        single = EvaluationInputs(
            heldout,
            factory.reconstruct,
            models,
            long,
            self.folder,
            settings,
            config.seed,
            measures,
        )
        duets = self.clips(DUETS)
        # Folders of videos have none, and one clip has no other to be compared with.
        if len(duets.captions) < 2:
            return single, None
        once = replace(settings, seeds=1, page_clips=PAGE_DUETS)
        folder, two = self.folder / DUETS_FOLDER, samplers(ON_DUETS, seconds)
        return single, EvaluationInputs(
            duets, factory.reconstruct, two, {}, folder, once, config.seed, measures
        )


class Collector:
    """Worker that samples and observes sets of clips, by their numbers; finished ones are skipped.

    Args:
        paths: what is evaluated.

    Attributes:
        sets: name of each set, and what collects it.
    """

    def __init__(self, paths: EvaluationPaths) -> None:
        self.sets: list[tuple[str, Callable[[], object]]] = [(TRAIN, paths.training)]
        for inputs in paths.evaluations():
            if inputs:
                self.sets += inputs.sets().items()
        # The teacher takes many steps per clip: first, or at the end the others would wait for it.
        self.sets.sort(key=lambda named: named[0] != MODELS[0])

    def __call__(self, number: int, done: Done) -> None:
        self.sets[number][1]()
        done(1)


def run(stage: Stage) -> None:
    """Sample, measure and time every model, and publish metrics, plots and the page."""
    config, paths = stage.config, EvaluationPaths.from_stage(stage)
    processes = process_count(config.trainer)
    if processes > 1:
        numbers = range(len(Collector(paths).sets))
        pool = LocalPool(processes, "not all sets of clips were collected")
        pool(partial(Collector, paths), numbers, lambda _: None)
    # Sets that were collected in parallel are read from disk from here on.
    single, duets = paths.evaluations()
    training = paths.training()
    measured = evaluate(single, training)
    measured_duets = evaluate(duets, training) if duets else None
    folders = {name: paths.inputs[name] for name in MODELS}
    codec, artifact = paths.inputs["codec"], stage.work / "artifact"
    prompt = single.heldout.captions[0]
    speed = against_the_teacher(config, paths.factory(), folders, codec, artifact, prompt)
    settings = {
        "preset": config.preset,
        "seed": config.seed,
        "seeds": config.evaluate.seeds,
        "heldout_clips": len(single.heldout.captions),
        "heldout_duets": len(duets.heldout.captions) if duets else 0,
        "tolerance_ms": TOLERANCE_MS,
    }
    with stage.publish() as folder:
        metrics = write_report(
            folder,
            paths.folder,
            measured,
            settings,
            speed,
            gradients(stage),
            measured_duets,
            curves(stage),
        )
    stage.write_metrics(metrics)
    ids = {name: about["id"] for name, about in metrics["protocols"].items()}
    stage.mlflow_run.log_params({"protocol": ids})
    stage.log_artifact(stage.folder, ARTIFACTS)
    table = stage.folder / CLIP_TABLE
    stage.log_table(table, ARTIFACTS)
    stage.log_dataset(clip_records(read_json(table), f"runs:/{stage.mlflow_run.id}/{ARTIFACTS}"))


def gradients(stage: Stage) -> dict[str, dict[str, float]]:
    """Read the largest gradient norms per modality of each training stage.

    A teacher that was loaded has none.
    """
    norms = {}
    for name in MODELS:
        recorded = read_json(stage.input(name).with_name(f"{name}.metrics.json"))
        norms[name] = {
            key.removeprefix(NORM_PREFIX): value
            for key, value in recorded.items()
            if key.startswith(NORM_PREFIX)
        }
    return {name: values for name, values in norms.items() if values}


def curves(stage: Stage) -> tuple[dict[str, Curves], dict[str, Curves]]:
    """Read the curves of the training stages, and those of the preset's reference run if any."""
    reference = stage.root / REFERENCES / stage.config.preset
    return stage_curves(stage.folder.parent, MODELS), stage_curves(reference, MODELS)
