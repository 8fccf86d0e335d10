"""Run an ablation: train each variant as a DVC experiment and compare its final student.

A variant is finished when the checkout has its experiment, made from the inputs that the baseline
reads now. A command that was killed continues with the first variant that is not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.config import digest
from omniforcing.core.environment import COMMIT_VARIABLE, PARENT_VARIABLE
from omniforcing.core.files import folder_digest, read_json
from omniforcing.pipeline import tracking
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.declaration import read_declaration, stage_names
from omniforcing.pipeline.experiments.experiments import Laboratory
from omniforcing.pipeline.experiments.variants import (
    BASELINE,
    Variant,
    all_variants,
    chosen_variants,
    seeded,
)
from omniforcing.pipeline.forking import fork_server
from omniforcing.pipeline.generate import ensure_pipeline
from omniforcing.pipeline.stage import exclusive

FINAL = "self_forcing"
EVALUATION = "evaluate"
# Stages of the baseline whose outputs a measurement reads.
READ = ("shards", "latents", "codec")
# Rows of the table that come from the baseline's evaluation, and the models' names there.
BESIDE = {"real": "real", "chance": "shuffled", "teacher": "teacher", BASELINE: FINAL}
# Stages that draw from the training seed. A variant of another seed reads the baseline's clips,
# codec and teacher.
SEEDED = ("bidirectional_dmd", "trajectories", "causal_ode", FINAL)


@dataclass(frozen=True)
class Trial:
    """Input of a variant's measurement.

    Attributes:
        label: name that is unique to the weights and the variant's configuration.
        config: the variant's configuration.
        data: folder of the baseline's outputs.
        weights: folder of the final student.
        work: scratch folder, shared by all variants that are measured in the same way.
    """

    label: str
    config: Config
    data: Path
    weights: Path
    work: Path


# Measures one model: figures by name, as below ``models`` in the evaluation's metrics.json.
Measure = Callable[[Trial], Mapping[str, Any]]
# Measures what is compared in turns, of the baseline and all variants: figures by row and name.
Compare = Callable[[Mapping[str, Trial]], Mapping[str, Mapping[str, Any]]]


def nothing_more(_trials: Mapping[str, Trial]) -> Mapping[str, Mapping[str, Any]]:
    """Compare nothing."""
    return {}


def run_ablation(
    root: Path,
    preset: str | None,
    names: Sequence[str],
    measure: Measure,
    seeds: Sequence[int] = (),
    compare: Compare = nothing_more,
) -> Path:
    """Train and measure variants of a preset, and write the table.

    The table also has the variants that were trained for this baseline before.

    Args:
        root: the checkout.
        preset: None for the tracked one.
        names: of variants and groups; empty for the stages' variants that fit the preset.
        measure: measures one variant's final student.
        seeds: seeds of Stages I to III; with another than the preset's the baseline is trained
            anew too. Empty for the preset's.
        compare: measures more of the baseline and all variants.

    Returns:
        The folder of the table.

    Raises:
        OmniForcingError: if a preset or variant is unknown, changes are not committed, the baseline
            has not run, the preset's ablation runs already in this checkout, or a variant fails.
    """
    # A pipeline run writes the ``dvc.lock`` that is read here; refuse to start during one.
    with exclusive(root / ".work" / "pipeline.lock", "a pipeline run in this checkout"):
        config = load_config(root=root, preset=preset)
        ensure_pipeline(root, config.preset)
        variants = chosen_variants(root, config, names)
        chosen: dict[str, Variant] = {}
        for seed in seeds or [config.seed]:
            chosen |= seeded(variants, None if seed == config.seed else seed)
        work = root / ".work" / config.preset / "ablation"
        lab = Laboratory.open(root, work / "checkout", config.preset)
    forks = fork_server(config.trainer.threads)
    with exclusive(work / "lock", f"an ablation of preset {config.preset}"), forks:
        return _run(lab, work, _with_trained(lab, config, chosen), measure, compare)


def _with_trained(
    lab: Laboratory, config: Config, chosen: Mapping[str, Variant]
) -> dict[str, Variant]:
    """Add variants that are trained for this baseline to the chosen ones, in the table's order."""
    known = all_variants(config, lab.names())
    return {
        name: variant
        for name, variant in {**known, **chosen}.items()
        if name in chosen or lab.find(_experiment(lab, name), FINAL)
    }


def _run(
    lab: Laboratory,
    work: Path,
    variants: Mapping[str, Variant],
    measure: Measure,
    compare: Compare,
) -> Path:
    """Train and measure the variants one after the other, and write the table beside the data.

    Returns:
        The folder of the table.
    """
    print(f"checking the baseline of preset {lab.preset}", flush=True)
    lab.check_out_baseline(EVALUATION)
    baseline = lab.folder / read_declaration(EVALUATION, lab.folder, lab.preset).folder
    evaluation = read_json(baseline / "metrics.json")
    measured_at = {"git_commit": lab.commit, "evaluation": folder_digest(baseline)}
    rows = {
        row: evaluation["models"][model]
        for row, model in BESIDE.items()
        if model in evaluation["models"]
    }
    # Read before the first experiment, which leaves its own configuration in the clone.
    configs = {
        name: load_config(list(variant.overrides), lab.folder, lab.preset)
        for name, variant in variants.items()
    }
    student = lab.keep(lab.data / FINAL, work / "students")
    config = load_config(root=lab.folder, preset=lab.preset)
    measured = work / "measured" / _measured_with(lab)[:16]
    trials = {BASELINE: Trial(BASELINE, config, lab.data, student, measured)}
    with tracking.closing(_parent_run(lab, work, variants)) as parent:
        for number, (name, variant) in enumerate(variants.items(), 1):
            print(f"\n=== {name} ({number} of {len(variants)}): {variant.about}", flush=True)
            weights = _train(lab, work, name, variant, parent)
            label = f"{name}.{digest([folder_digest(weights), variant.overrides])[:8]}"
            trials[name] = Trial(label, configs[name], lab.data, weights, measured)
            rows[name] = measure(trials[name])
        for name, figures in compare(trials).items():
            rows[name] = {**rows[name], **figures}
        from omniforcing.evaluation.ablation import write_ablation

        folder = lab.root / "data" / lab.preset / "ablation"
        about = {
            name: {"about": v.about, "overrides": list(v.changes)} for name, v in variants.items()
        }
        write_ablation(folder, rows, about, {**evaluation["settings"], **measured_at})
        parent.log_metrics(rows)
        parent.log_artifact(folder)
    return folder


def _measured_with(lab: Laboratory) -> str:
    """Return a digest of everything else that decides a variant's figures.

    That is the evaluation's configuration and code, and the baseline's outputs; not the variant's
    weights and keys, which ``Trial.label`` identifies.
    """
    declared = read_declaration(EVALUATION, lab.folder, lab.preset)
    values = declared.config_values(load_config(root=lab.folder, preset=lab.preset))
    inputs = {name: folder_digest(lab.data / name) for name in READ if (lab.data / name).exists()}
    return digest({"config": values, "inputs": inputs, "code": declared.work_digest(lab.folder)})


def _parent_run(lab: Laboratory, work: Path, variants: Mapping[str, Variant]) -> tracking.Run:
    """Open the MLflow parent run of all variants, the same one after a kill."""
    tags = {"preset": lab.preset, "git_commit": lab.commit}
    changes = {name: " ".join(variant.changes) for name, variant in variants.items()}
    return tracking.open_run(
        tracking.connect(lab.root), f"ablation {lab.preset}", work / "parent.json", tags, changes
    )


def _experiment(lab: Laboratory, name: str) -> str:
    return f"{lab.preset}-{name}"


def _train(lab: Laboratory, work: Path, name: str, variant: Variant, parent: tracking.Run) -> Path:
    """Train a variant, unless the checkout has its experiment on this baseline.

    Args:
        lab: the clone that it is trained in.
        work: folder that gets the student.
        name: the variant's.
        variant: its overrides and seed.
        parent: MLflow run under which the stages' runs are logged.

    Returns:
        The folder of the final student.
    """
    experiment = _experiment(lab, name)
    commit = lab.find(experiment, FINAL)
    if commit:
        print(f"trained already, in DVC's experiment {experiment}", flush=True)
    else:
        ours = {PARENT_VARIABLE: parent.id, COMMIT_VARIABLE: lab.commit}
        names = stage_names(lab.folder)
        targets = [FINAL] if variant.seed is None else [name for name in SEEDED if name in names]
        commit = lab.run(experiment, variant.overrides, targets, ours, variant.seed)
    student = read_declaration(FINAL, lab.folder, lab.preset).folder
    return lab.fetch(commit, student, work / "students" / f"{name}-{commit[:12]}")
