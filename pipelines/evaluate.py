"""Stage evaluate: every model on the same held-out captions and seeds, measured and side by side on a page.

A killed run keeps the sets of clips that it has finished.
"""

from dataclasses import replace

from omniforcing.data.sources import DUETS, HELDOUT, TRAIN
from omniforcing.files import read_json
from omniforcing.metrics.bench import CAUSAL, MODELS, Bench, split_clips
from omniforcing.metrics.curves import REFERENCES, Curves, stage_curves
from omniforcing.metrics.evaluate import evaluate
from omniforcing.metrics.nearest import Training
from omniforcing.metrics.report import DUETS_FOLDER, publish
from omniforcing.ops.stage import Stage, stage_main

ON_DUETS = (MODELS[0], MODELS[-1])  # the harder split compares the teacher with what is left of it after all stages
NORM = "largest_gradient_norm_"


def run(stage: Stage) -> None:
    """Sample, measure, time, and publish metrics, plots and page."""
    config, settings = stage.config, stage.config.evaluate
    codec, folders = stage.input("codec"), {name: stage.input(name) for name in MODELS}
    bench = Bench.open(config, codec, stage.input("latents"))
    shards, work, seconds = stage.input("shards"), stage.work / "sets", config.clips.seconds
    heldout, duets = (split_clips(shards, split, settings.clips) for split in (HELDOUT, DUETS))
    training = Training.collect(split_clips(shards, TRAIN, settings.train_clips), work / "train")
    models = {name: bench.sampler(name, folders[name], seconds) for name in MODELS}
    found = evaluate(
        heldout,
        training,
        bench.reconstruct,
        models,
        rollouts={name: bench.sampler(name, folders[name], settings.drift_factor * seconds) for name in CAUSAL},
        work=work,
        config=settings,
        seed=config.seed,
    )
    harder = None
    if len(duets.captions) > 1:  # folders of videos have none, and one alone cannot be compared
        asked = {name: models[name] for name in ON_DUETS}
        once = replace(settings, seeds=1, page_clips=settings.page_duets)
        harder = evaluate(duets, training, bench.reconstruct, asked, {}, work / DUETS_FOLDER, once, config.seed)
    speed = bench.speed(folders, codec, stage.work / "artifact", heldout.captions[0])
    described = {
        "preset": config.preset,
        "seed": config.seed,
        "seeds": settings.seeds,
        "heldout_clips": len(heldout.captions),
        "heldout_duets": len(duets.captions),
        "tolerance_ms": settings.tolerance_ms,
    }
    with stage.publish() as folder:
        metrics = publish(folder, work, found, described, speed, gradients(stage), harder, curves(stage))
    stage.metrics(metrics)
    stage.log_artifact(stage.folder, "evaluation")


def gradients(stage: Stage) -> dict[str, dict[str, float]]:
    """The largest gradient norms per modality that the training stages recorded; a teacher that was loaded has none."""
    norms = {}
    for name in MODELS:
        recorded = read_json(stage.input(name).with_name(f"{name}.metrics.json"))
        norms[name] = {key.removeprefix(NORM): value for key, value in recorded.items() if key.startswith(NORM)}
    return {name: values for name, values in norms.items() if values}


def curves(stage: Stage) -> tuple[dict[str, Curves], dict[str, Curves]]:
    """The training stages' curves, and those of the reference run of this preset, if one is kept."""
    reference = stage.root / REFERENCES / stage.config.preset
    return stage_curves(stage.folder.parent, MODELS), stage_curves(reference, MODELS)


if __name__ == "__main__":
    stage_main("evaluate", run)
