"""Command ``plan``: what a preset's training takes of GPUs."""

from __future__ import annotations

import click

from omniforcing.cli.command import Command
from omniforcing.cli.options import overrides_argument, parse_memory, preset_option
from omniforcing.core.errors import OmniForcingError


@click.command(
    cls=Command,
    examples=(
        "omniforcing plan --preset ltx2 --gpus 32 --memory 80GB",
        "omniforcing plan --preset ltx2 --machines",
        "omniforcing plan --preset ltx2 --stage self_forcing --json trainer.accumulate=2",
    ),
)
@overrides_argument
@preset_option
@click.option("--gpus", type=int, default=8, help="GPUs of the cluster.")
@click.option("--memory", default="80GB", help="Memory of one GPU, such as 80GB or 141GB.")
@click.option("--node", type=int, default=8, help="GPUs of one machine.")
@click.option(
    "--batch",
    type=int,
    help="Clips per update of all GPUs.  [default: the preset's, at least one per GPU]",
)
@click.option(
    "--tflops",
    type=float,
    default=400,
    help="Sustained TFLOP/s of one GPU; the default is 40 % of an H100 in bf16.",
)
@click.option("--link", type=float, default=300, help="Bandwidth within a machine, GB/s per GPU.")
@click.option("--network", type=float, default=40, help="Bandwidth between machines, GB/s per GPU.")
@click.option("--stage", help="Plan this stage alone.")
@click.option(
    "--machines",
    is_flag=True,
    help="A table of 1, 8, 16 and 32 GPUs of 24, 48, 80 and 141 GB, instead of one cluster.",
)
@click.option("--json", "as_json", is_flag=True, help="Print json instead of tables.")
def plan(
    overrides: tuple[str, ...],
    preset: str | None,
    gpus: int,
    memory: str,
    node: int,
    batch: int | None,
    tflops: float,
    link: float,
    network: float,
    stage: str | None,
    machines: bool,
    as_json: bool,
) -> None:
    """Estimate the memory and time of a preset's training on GPUs, and the settings that fit."""
    from omniforcing.core.config import project_root
    from omniforcing.pipeline.config import load_config
    from omniforcing.pipeline.planner.cost import Cluster
    from omniforcing.pipeline.planner.machines import report_machines
    from omniforcing.pipeline.planner.plan import report

    for name, value in (("gpus", gpus), ("node", node), ("batch", batch)):
        if value is not None and value < 1:
            raise OmniForcingError("option.out-of-range", f"--{name} is {value}; give 1 or more")
    root = project_root()
    speeds = (tflops * 1e12, link * 1e9, network * 1e9)
    cluster = Cluster(gpus, parse_memory(memory), node, *speeds)
    if machines:
        context = click.get_current_context()
        for name in ("gpus", "memory", "batch"):
            if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                raise click.UsageError(
                    f"--machines plans clusters of its own, one clip per GPU at a time; "
                    f"leave out --{name}",
                    context,
                )
        print(report_machines(overrides, preset, root, cluster, stage, as_json))
        return
    config = load_config(list(overrides), root, preset)
    print(report(config, root, cluster, batch, stage, as_json))
