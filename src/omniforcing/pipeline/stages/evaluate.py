"""Stage evaluate: every model on the same held-out captions and seeds, measured and side by side on a page.

A killed run keeps the sets of clips that it has finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omniforcing.core.files import read_json
from omniforcing.data.sources import DUETS, HELDOUT, TRAIN
from omniforcing.evaluation.curves import REFERENCES, Curves, stage_curves
from omniforcing.evaluation.evaluate import DRIFT_FACTOR, EvaluationInputs, Sampler, evaluate
from omniforcing.evaluation.nearest import TrainingClips
from omniforcing.evaluation.report import DUETS_FOLDER, write_report
from omniforcing.evaluation.samplers import CAUSAL, MODELS, SamplerFactory, split_clips
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.processes import run_side_by_side
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.factory import open_factory
from omniforcing.pipeline.stages.shared.speed import against_the_teacher
from omniforcing.pocket.observe import Clips
from omniforcing.pocket.sync import TOLERANCE_MS

ON_DUETS = (
    MODELS[0],
    MODELS[-1],
)  # the harder split compares the teacher with what is left of it after all stages
NORM = "largest_gradient_norm_"
PAGE_DUETS = 3  # videos per model of clips of two balls: half as many as of the others


@dataclass(frozen=True)
class Work:
    """What there is to evaluate, as paths, so that any process can open it."""

    config: Config
    inputs: dict[str, Path]
    folder: Path

    @classmethod
    def of(cls, stage: Stage) -> Work:
        """The stage's own."""
        names = ("codec", "latents", "shards", *MODELS)
        return cls(stage.config, {name: stage.input(name) for name in names}, stage.work / "sets")

    def clips(self, split: str) -> Clips:
        """The clips of a split that are evaluated."""
        settings = self.config.evaluate
        return split_clips(
            self.inputs["shards"], split, settings.train_clips if split == TRAIN else settings.clips
        )

    def factory(self) -> SamplerFactory:
        """The models as samplers."""
        return open_factory(self.config, self.inputs["codec"], self.inputs["latents"])

    def training(self) -> TrainingClips:
        """The clips that the models were trained on."""
        return TrainingClips.collect(self.clips(TRAIN), self.folder / "train")

    def evaluations(self) -> tuple[EvaluationInputs, EvaluationInputs | None]:
        """The held-out clips with every model and, if there are two or more, the duets with the first and the last."""
        config, settings, factory = self.config, self.config.evaluate, self.factory()

        def samplers(names: Sequence[str], seconds: int) -> dict[str, Sampler]:
            return {name: factory.sampler(name, self.inputs[name], seconds) for name in names}

        seconds = config.clips.seconds
        long = samplers(CAUSAL, DRIFT_FACTOR * seconds)
        heldout, models = self.clips(HELDOUT), samplers(MODELS, seconds)
        main = EvaluationInputs(
            heldout, factory.reconstruct, models, long, self.folder, settings, config.seed
        )
        duets = self.clips(DUETS)
        if len(duets.captions) < 2:  # folders of videos have none, and one alone cannot be compared
            return main, None
        once = replace(settings, seeds=1, page_clips=PAGE_DUETS)
        folder, two = self.folder / DUETS_FOLDER, samplers(ON_DUETS, seconds)
        return main, EvaluationInputs(
            duets, factory.reconstruct, two, {}, folder, once, config.seed
        )


def collect_share(work: Work, share: int, shares: int) -> None:
    """Observe every ``shares``-th set of clips from the ``share``-th on that is not there yet."""
    sets = [
        work.training,
        *(
            observed
            for inputs in work.evaluations()
            if inputs
            for observed in inputs.sets().values()
        ),
    ]
    for observed in sets[share::shares]:
        observed()


def run(stage: Stage) -> None:
    """Sample, measure, time, and publish metrics, plots and page."""
    config, work = stage.config, Work.of(stage)
    shares = config.trainer.processes if config.trainer.device == "cpu" else 1
    if shares > 1:
        run_side_by_side(
            [(collect_share, (work, share, shares)) for share in range(shares)],
            "the evaluation is not complete",
        )
    main, duets = work.evaluations()
    training = work.training()
    found, harder = evaluate(main, training), evaluate(duets, training) if duets else None
    folders = {name: work.inputs[name] for name in MODELS}
    codec, artifact, prompt = (
        work.inputs["codec"],
        stage.work / "artifact",
        main.heldout.captions[0],
    )
    speed = against_the_teacher(config, work.factory(), folders, codec, artifact, prompt)
    described = {
        "preset": config.preset,
        "seed": config.seed,
        "seeds": config.evaluate.seeds,
        "heldout_clips": len(main.heldout.captions),
        "heldout_duets": len(duets.heldout.captions) if duets else 0,
        "tolerance_ms": TOLERANCE_MS,
    }
    with stage.publish() as folder:
        metrics = write_report(
            folder, work.folder, found, described, speed, gradients(stage), harder, curves(stage)
        )
    stage.metrics(metrics)
    stage.log_artifact(stage.folder, "evaluation")


def gradients(stage: Stage) -> dict[str, dict[str, float]]:
    """The largest gradient norms per modality that the training stages recorded; a teacher that was loaded has none."""
    norms = {}
    for name in MODELS:
        recorded = read_json(stage.input(name).with_name(f"{name}.metrics.json"))
        norms[name] = {
            key.removeprefix(NORM): value for key, value in recorded.items() if key.startswith(NORM)
        }
    return {name: values for name, values in norms.items() if values}


def curves(stage: Stage) -> tuple[dict[str, Curves], dict[str, Curves]]:
    """The training stages' curves, and those of the reference run of this preset, if one is kept."""
    reference = stage.root / REFERENCES / stage.config.preset
    return stage_curves(stage.folder.parent, MODELS), stage_curves(reference, MODELS)
