"""Commands ``run``, ``stage``, ``ablation``, ``release``, ``config`` and ``pipeline``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniforcing.cli.command import Command, Group
from omniforcing.cli.options import complete_stages, overrides_argument, preset_option
from omniforcing.core.errors import OmniForcingError

if TYPE_CHECKING:
    from omniforcing.pipeline.experiments.ablation import Trial


def _stages(
    _context: click.Context, _parameter: click.Parameter, words: Sequence[str]
) -> tuple[str, ...]:
    """Split words into names of stages; an MLproject parameter has all of them in one word."""
    return tuple(name for word in words for name in word.split())


@click.command(
    cls=Command,
    examples=(
        "omniforcing run --preset smoke",
        "omniforcing run teacher",
        "omniforcing run --preset small --dry-run",
        "omniforcing run --preset pocket --keep",
    ),
)
@click.argument(
    "stages",
    nargs=-1,
    metavar="[STAGE]...",
    callback=_stages,
    shell_complete=complete_stages,
    help="Stages to bring up to date, with all they need.  [default: all]",
)
@preset_option
@click.option(
    "--foundation", is_flag=True, help="Train codec and teacher and keep them in the package."
)
@click.option(
    "--keep", is_flag=True, help="Also keep the artifact in the package, for `omniforcing demo`."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Try every stage at its real size on a few clips; keep nothing.",
)
def run(
    stages: tuple[str, ...], preset: str | None, foundation: bool, keep: bool, dry_run: bool
) -> None:
    """Bring stages up to date through DVC.

    All stages are MLflow runs under one parent run. A run that was killed continues where it
    stopped.
    """
    from omniforcing.core.config import project_root

    _refuse_overrides(stages, preset)
    if dry_run:
        if stages or foundation or keep:
            raise click.UsageError(
                "a dry run tries every stage of a preset; give --dry-run with --preset alone",
                click.get_current_context(),
            )
        from omniforcing.pipeline import dry_run as trial

        trial.dry_run(project_root(), preset)
        return
    if keep and (stages or foundation):
        raise click.UsageError(
            "the artifact is kept with all stages that it needs; give --keep with --preset alone",
            click.get_current_context(),
        )
    from omniforcing.pipeline.runner import run_pipeline

    run_pipeline(project_root(), preset, stages, train_foundation=foundation, keep_student=keep)


def _refuse_overrides(words: Sequence[str], preset: str | None) -> None:
    """Refuse ``key=value``: DVC runs stages with the values of the files in conf/.

    Raises:
        OmniForcingError: naming the commands that try a change and the file that keeps it.
    """
    from omniforcing.core.config import project_root
    from omniforcing.pipeline.declaration import COMMON_KEYS, pipeline_file, tracked_preset

    for word in words:
        if word.startswith("preset="):
            raise OmniForcingError(
                "option.preset-as-override",
                f"{word} is not a stage; give --preset {word.removeprefix('preset=')}",
            )
        if "=" in word:
            root = project_root()
            chosen = preset or tracked_preset(root)
            common = word.partition("=")[0] in COMMON_KEYS
            file = "conf/config.yaml" if common else f"conf/preset/{chosen}.yaml"
            pipeline_path = pipeline_file(root, chosen)
            target = "" if pipeline_path == "dvc.yaml" else pipeline_path
            experiment = f"dvc exp run -S {file}:++{word} {target}".strip()
            raise OmniForcingError(
                "option.override-of-run",
                f"`omniforcing run` runs what conf/ says, so it does not take {word}; to try it, "
                f"run `{experiment}`, or one stage with "
                f"`omniforcing stage STAGE {word}`; to keep it, write it into {file}",
            )


class _Stages(Group):
    """The stages of this checkout as commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of the stages."""
        del ctx
        from omniforcing.core.config import project_root
        from omniforcing.pipeline.declaration import read_specs

        return [spec.name for spec in read_specs(project_root())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Build the command that runs a stage.

        Raises:
            OmniForcingError: if there is no such stage.
        """
        del ctx
        from omniforcing.core.config import project_root
        from omniforcing.pipeline.declaration import read_declaration, tracked_preset

        if cmd_name.startswith("-"):
            return None
        root = project_root()
        declared = read_declaration(cmd_name, root, tracked_preset(root))

        def start(overrides: tuple[str, ...], preset: str | None) -> None:
            from omniforcing.pipeline.stage import start_stage

            start_stage(cmd_name, overrides, preset)

        about = f"""{declared.about}

        \b
        reads:       {", ".join(declared.inputs) or "nothing"}
        writes:      {declared.folder} and {cmd_name}.metrics.json beside it
        depends on:  {", ".join(declared.keys)} (conf/config.yaml documents each key),
                     and on the code that {declared.spec.module} imports

        Folders are those of the preset {tracked_preset(root)}. Overrides are for trials: the
        pipeline itself runs through DVC, `dvc repro` or `omniforcing run --preset NAME`."""
        command = click.command(
            cmd_name,
            cls=Command,
            help=about,
            short_help=declared.about,
            examples=(
                f"omniforcing stage {cmd_name} --preset smoke seed=1",
                f"omniforcing stage {cmd_name} cluster=ray",
            ),
        )
        return command(preset_option(overrides_argument(start)))


stage = _Stages(
    "stage",
    help="Run one stage in this process, as pipelines/STAGE.py does.",
    subcommand_metavar="STAGE [KEY=VALUE]...",
    examples=(
        "omniforcing stage evaluate --preset smoke evaluate.seeds=1",
        "omniforcing stage teacher --help",
    ),
)


def _complete_variants(
    _context: click.Context, _parameter: click.Parameter, typed: str
) -> list[str]:
    from omniforcing.pipeline.experiments.variants import GROUPS, VARIANTS

    return [name for name in (*GROUPS, *VARIANTS) if name.startswith(typed)]


@click.command(
    cls=Command,
    examples=(
        "omniforcing ablation",
        "omniforcing ablation --preset smoke without-I without-II",
        "omniforcing ablation adapters steps --seed 0 --seed 1",
    ),
)
@click.argument(
    "variants",
    nargs=-1,
    metavar="[VARIANT]...",
    shell_complete=_complete_variants,
    help="Variants to train, such as without-I, or groups: stages, adapters, steps.  "
    "[default: stages]",
)
@preset_option
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0),
    multiple=True,
    help="Seed of Stages I to III, also of a baseline; once for each.  [default: the preset's]",
)
def ablation(variants: tuple[str, ...], preset: str | None, seeds: tuple[int, ...]) -> None:
    """Train variants of the distillation and measure them.

    Each variant is a DVC experiment and is compared with the baseline, which `omniforcing run` must
    have run. An ablation that was killed continues where it stopped.
    """
    from omniforcing.core.config import project_root
    from omniforcing.pipeline.experiments.ablation import run_ablation

    folder = run_ablation(project_root(), preset, variants, _measure, seeds, _compare)
    print(f"\ntable and plot: {folder / 'index.html'}   experiments: dvc exp show   runs: make ui")


def _measure(trial: Trial) -> Mapping[str, Any]:
    # Imported here so that an error of the command line need not wait for torch.
    from omniforcing.pipeline.experiments.measure import measure

    return measure(trial)


def _compare(trials: Mapping[str, Trial]) -> Mapping[str, Mapping[str, Any]]:
    from omniforcing.pipeline.experiments.compare import compare

    return compare(trials)


@click.command(
    cls=Command,
    examples=(
        "omniforcing release",
        "omniforcing release models:/omniforcing-pocket/3 --rules conf/release.yaml",
    ),
)
@click.argument(
    "candidate",
    required=False,
    help="models:/NAME/VERSION in MLflow.  [default: what the last finished stage export logged]",
)
@preset_option
@click.option(
    "--rules",
    type=click.Path(path_type=Path),
    help="YAML file: what may not get worse, and by how much.  [default: conf/release.yaml]",
)
def release(candidate: str | None, preset: str | None, rules: Path | None) -> None:
    """Make a model the champion of MLflow's registry, unless something got worse.

    Its evaluation is compared with the champion's, over the same captions and seeds. A page in
    data/PRESET/release says why it passed or not; a model that is refused stays registered.
    """
    from omniforcing.core.config import project_root
    from omniforcing.pipeline.release import release as gate

    result = gate.release(project_root(), candidate, preset, rules)
    if not result.passed:
        raise OmniForcingError("pipeline.release-refused", f"{result.why}; see {result.page}")
    print(f"{result.why}; see {result.page}" if result.page else result.why)


@click.command(
    cls=Command,
    examples=(
        "omniforcing config",
        "omniforcing config --preset smoke clips.count=16",
        "omniforcing config --write",
    ),
)
@overrides_argument
@preset_option
@click.option("--write", "action", flag_value="write", help="Write conf/config.yaml anew.")
@click.option("--check", "action", flag_value="check", help="Fail if conf/config.yaml is stale.")
def config(overrides: tuple[str, ...], preset: str | None, action: str | None) -> None:
    """Print the configuration that a stage would see, as YAML.

    conf/config.yaml documents each key; it is generated from the code, and --write renews it.
    """
    if action is not None:
        from omniforcing.core.config import project_root
        from omniforcing.pipeline.config_file import FILE, check_config_file, write_config_file

        if action == "check":
            check_config_file(project_root())
        elif write_config_file(project_root()):
            print(f"written: {FILE}")
        return
    from yaml import safe_dump

    from omniforcing.core.config import to_dict
    from omniforcing.pipeline.config import load_config

    loaded = load_config(list(overrides), preset=preset)
    print(safe_dump(to_dict(loaded), sort_keys=False), end="")


@click.command(
    cls=Command,
    examples=(
        "omniforcing pipeline --write",
        "omniforcing pipeline --write --preset smoke",
        "omniforcing pipeline --check",
    ),
)
@click.option(
    "--write",
    "action",
    flag_value="write",
    help="Renew dvc.yaml and other presets' pipelines that exist; create that of --preset.",
)
@click.option("--check", "action", flag_value="check", help="Fail if a generated file is stale.")
@click.option(
    "--digests",
    "action",
    flag_value="digests",
    help="Write the code digests, as stage `code` does.",
)
@preset_option
def pipeline(action: str | None, preset: str | None) -> None:
    """Generate every preset's dvc.yaml from pipelines/stages.py, or check them."""
    from omniforcing.core.config import project_root
    from omniforcing.pipeline import generate
    from omniforcing.pipeline.declaration import tracked_preset

    root = project_root()
    if action == "write":
        for path in generate.write_pipelines(root, [preset] if preset else []):
            print(f"written: {path}")
    elif action == "check":
        generate.check_pipelines(root)
    elif action == "digests":
        generate.write_digests(root, preset or tracked_preset(root))
    else:
        raise click.UsageError(
            "give one of --write, --check and --digests", click.get_current_context()
        )
