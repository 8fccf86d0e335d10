"""Variants of the ablation in groups: what each changes of a preset, under which training seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omniforcing.core.config import ConfigError
from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.pipeline.config import Config, load_config

# The group that is trained if none is named.
DEFAULT = "stages"
BASELINE = "baseline"
RANKS = (4, 16, 64)
# An adapter's factors take about ten times the rates of whole weights, by AdamW.
RATES = {"bidirectional_dmd": "1.0e-3", "causal_ode": "3.0e-3", "self_forcing": "1.0e-3"}
CRITIC_RATE = "2.0e-3"


@dataclass(frozen=True)
class Variant:
    """A change of the preset.

    Attributes:
        about: the change in words, for the table.
        overrides: the change as ``key=value`` of the configuration.
        group: name of the group that it belongs to.
        seed: seed of Stages I to III; None for the preset's.
    """

    about: str
    overrides: tuple[str, ...]
    group: str = DEFAULT
    seed: int | None = None

    @property
    def changes(self) -> tuple[str, ...]:
        """The overrides, and the seed if it is another than the preset's."""
        return self.overrides if self.seed is None else (*self.overrides, f"seed={self.seed}")


def variants_of(config: Config) -> dict[str, Variant]:
    """List the variants of a preset's configuration, in the table's order."""
    return {**_stages(config), **_adapters(), **_steps(config)}


def _stages(config: Config) -> dict[str, Variant]:
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


def _adapters() -> dict[str, Variant]:
    variants = {}
    for rank in RANKS:
        overrides = []
        for stage, rate in RATES.items():
            overrides += [
                f"{stage}.adapter={{rank: {rank}}}",
                f"{stage}.muon_lr=null",
                f"{stage}.optim.lr={{video: {rate}, audio: {rate}}}",
            ]
            if stage != "causal_ode":
                overrides += [
                    f"{stage}.critic_adapter={{rank: {rank}}}",
                    f"{stage}.critic_muon_lr=null",
                    f"{stage}.critic_lr={CRITIC_RATE}",
                ]
        about = f"student and critic trained as adapters of rank {rank}, in all three stages"
        variants[f"adapters-{rank}"] = Variant(about, tuple(overrides), "adapters")
    return variants


def _steps(config: Config) -> dict[str, Variant]:
    """Return students of fewer steps, whose sigmas are some of the preset's."""
    sigmas, variants = config.student.sigmas, {}
    for steps in range(len(sigmas) - 1, 1, -1):
        # Evenly spread from the first on. The smallest sigma goes first: what is left of the noise
        # there is little.
        kept = [sigmas[round(i * (len(sigmas) - 2) / (steps - 1))] for i in range(steps)]
        overrides = (
            f"student.sigmas=[{', '.join(map(str, kept))}]",
            f"trajectories.steps={steps * max(1, config.trajectories.steps // len(sigmas))}",
        )
        about = f"a student of {steps} steps instead of {len(sigmas)}"
        variants[f"steps-{steps}"] = Variant(about, overrides, "steps")
    return variants


VARIANTS = tuple(variants_of(Config()))
GROUPS = tuple(dict.fromkeys(variant.group for variant in variants_of(Config()).values()))


def seeded(variants: Mapping[str, Variant], seed: int | None) -> dict[str, Variant]:
    """Give variants another seed, and a name that says so; the baseline comes before them.

    Args:
        variants: variants by name.
        seed: seed of Stages I to III; None leaves the variants as they are.
    """
    if seed is None:
        return dict(variants)
    everything = {BASELINE: Variant("the preset itself", (), ""), **variants}
    return {
        seeded_name(name, seed): replace(variant, about=f"{variant.about}, seed {seed}", seed=seed)
        for name, variant in everything.items()
    }


def seeded_name(name: str, seed: int) -> str:
    """Return the name of a variant that is trained with another seed."""
    return f"{name}-seed-{seed}"


def all_variants(config: Config, trained: Iterable[str]) -> dict[str, Variant]:
    """List a preset's variants, and under every other seed that names of experiments end with."""
    variants = variants_of(config)
    ends = (name.rpartition("-seed-")[2] for name in trained if "-seed-" in name)
    for seed in sorted({int(end) for end in ends if end.isdecimal()}):
        variants |= seeded(variants_of(config), seed)
    return variants


def chosen_variants(root: Path, config: Config, names: Sequence[str]) -> dict[str, Variant]:
    """Select variants by name; without names, all of the default group that fit the preset.

    Prints which variants are left out because the preset's configuration does not allow them.

    Args:
        root: the checkout.
        config: the preset's.
        names: of variants and groups; may be empty.

    Returns:
        Variants by name, in the table's order.

    Raises:
        OmniForcingError: if a name is unknown, or a named variant does not fit the preset.
    """
    variants = variants_of(config)
    known = (*GROUPS, *variants)
    for name in names:
        if name not in known:
            raise OmniForcingError(
                "option.unknown-name",
                f"unknown variant {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}",
            )
    wanted = names or (DEFAULT,)
    chosen = {
        name: variant
        for name, variant in variants.items()
        if name in wanted or variant.group in wanted
    }
    misfits = {
        name: error for name, variant in chosen.items() if (error := _misfit(root, config, variant))
    }
    for name, error in misfits.items():
        if name in names:
            raise error
        print(f"left out: {name} does not fit, {error}")
    return {name: variant for name, variant in chosen.items() if name not in misfits}


def _misfit(root: Path, config: Config, variant: Variant) -> ConfigError | None:
    """Return why the preset's configuration does not allow a variant; None if it does."""
    try:
        load_config(list(variant.overrides), root, config.preset)
    except ConfigError as error:
        return error
    return None
