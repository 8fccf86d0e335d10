"""Run the stage ablation: train each variant as a DVC experiment and compare its final student.

A variant is finished when the checkout has its experiment, made from the inputs that the baseline
reads now. A command that was killed continues with the first variant that is not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.config import ConfigError, digest
from omniforcing.core.environment import COMMIT_VARIABLE, PARENT_VARIABLE
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import folder_digest, read_json
from omniforcing.pipeline import tracking
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.declaration import read_declaration
from omniforcing.pipeline.experiments.experiments import Laboratory
from omniforcing.pipeline.generate import ensure_pipeline
from omniforcing.pipeline.stage import exclusive

FINAL = "self_forcing"
EVALUATION = "evaluate"
# Stages of the baseline whose outputs a measurement reads.
READ = ("shards", "latents", "codec")
# Rows of the table that come from the baseline's evaluation, and the models' names there.
BESIDE = {"real": "real", "chance": "shuffled", "teacher": "teacher", "baseline": FINAL}


@dataclass(frozen=True)
class Variant:
    """A change of the preset.

    Attributes:
        about: the change in words, for the table.
        overrides: the change as ``key=value`` of the configuration.
    """

    about: str
    overrides: tuple[str, ...]


def variants_of(config: Config) -> dict[str, Variant]:
    """List the variants of a preset's configuration, in the table's order."""
    return {
        "without-I": Variant(
            "Stage I skipped: trajectories and Stage II start from the teacher",
            ("trajectories.source=teacher", "causal_ode.init=teacher"),
        ),
        "without-II": Variant(
            "Stage II skipped: Stage III starts from Stage I's weights",
            ("self_forcing.init=bidirectional_dmd",),
        ),
        "without-III": Variant(
            "Stage III skipped: Stage II's student is the final one",
            ("self_forcing.optim.steps=0",),
        ),
        # The merged first block stays in the window and is a second longer, so a window of one
        # block less covers as much of the past.
        "merged-layout": Variant(
            "the prefix merged into the first block, as much of the past seen",
            ("student.layout=merged", f"student.window={config.student.window - 1}"),
        ),
        "teacher-pairs": Variant(
            "ODE pairs of the guided teacher, Stage II still initialised from Stage I",
            ("trajectories.source=teacher",),
        ),
        "causal-scores": Variant(
            "teacher and critic of Stage III score with causal attention",
            ("self_forcing.scores=causal",),
        ),
    }


VARIANTS = tuple(variants_of(Config()))


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


def chosen_variants(root: Path, config: Config, names: Sequence[str]) -> dict[str, Variant]:
    """Select variants by name; without names, all that fit the preset.

    Prints which variants are left out because the preset's configuration does not allow them.

    Args:
        root: the checkout.
        config: the preset's.
        names: of variants; may be empty.

    Returns:
        Variants by name, in the table's order.

    Raises:
        OmniForcingError: if a name is unknown, or a named variant does not fit the preset.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise OmniForcingError(
            "option.unknown-name", f"unknown variant {unknown[0]!r}; known: {', '.join(VARIANTS)}"
        )
    chosen = {
        name: variant for name, variant in variants_of(config).items() if not names or name in names
    }
    misfits = {
        name: error for name, variant in chosen.items() if (error := _misfit(root, config, variant))
    }
    if names and misfits:
        raise next(iter(misfits.values()))
    for name, error in misfits.items():
        print(f"left out: {name} does not fit, {error}")
    return {name: variant for name, variant in chosen.items() if name not in misfits}


def _misfit(root: Path, config: Config, variant: Variant) -> ConfigError | None:
    """Return why the preset's configuration does not allow a variant; None if it does."""
    try:
        load_config(list(variant.overrides), root, config.preset)
    except ConfigError as error:
        return error
    return None


def run_ablation(root: Path, preset: str | None, names: Sequence[str], measure: Measure) -> Path:
    """Train and measure variants of a preset, and write the table.

    The table also has the variants that were trained for this baseline before.

    Args:
        root: the checkout.
        preset: None for the tracked one.
        names: of variants; empty for all that fit the preset.
        measure: measures one variant's final student.

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
        chosen = chosen_variants(root, config, names)
        work = root / ".work" / config.preset / "ablation"
        lab = Laboratory.open(root, work / "checkout", config.preset)
    with exclusive(work / "lock", f"an ablation of preset {config.preset}"):
        return _run(lab, work, _with_trained(lab, config, chosen), measure)


def _with_trained(
    lab: Laboratory, config: Config, chosen: Mapping[str, Variant]
) -> dict[str, Variant]:
    """Add variants that are trained for this baseline to the chosen ones, in the table's order."""
    known = variants_of(config).items()
    return {
        name: variant
        for name, variant in known
        if name in chosen or lab.find(_experiment(lab, name), FINAL)
    }


def _run(lab: Laboratory, work: Path, variants: Mapping[str, Variant], measure: Measure) -> Path:
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
    measured = work / "measured" / _measured_with(lab)[:16]
    with tracking.closing(_parent_run(lab, work, variants)) as parent:
        for number, (name, variant) in enumerate(variants.items(), 1):
            print(f"\n=== {name} ({number} of {len(variants)}): {variant.about}", flush=True)
            weights = _train(lab, work, name, variant, parent)
            label = f"{name}.{digest([folder_digest(weights), variant.overrides])[:8]}"
            rows[name] = measure(Trial(label, configs[name], lab.data, weights, measured))
        from omniforcing.evaluation.ablation import write_ablation

        folder = lab.root / "data" / lab.preset / "ablation"
        about = {
            name: {"about": v.about, "overrides": list(v.overrides)} for name, v in variants.items()
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
    changes = {name: " ".join(variant.overrides) for name, variant in variants.items()}
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
        variant: its overrides.
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
        commit = lab.run(experiment, variant.overrides, FINAL, ours)
    student = read_declaration(FINAL, lab.folder, lab.preset).folder
    return lab.fetch(commit, student, work / "students" / f"{name}-{commit[:12]}")
