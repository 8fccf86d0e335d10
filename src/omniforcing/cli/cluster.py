"""Commands ``omniforcing job`` and ``omniforcing kuberay``: one stage on a Ray cluster."""

from __future__ import annotations

import click

from omniforcing.cli.command import Command
from omniforcing.cli.options import overrides_argument, preset_option, stage_argument


@click.command(
    cls=Command,
    examples=(
        "omniforcing job self_forcing cluster=ray",
        "omniforcing job shards --preset mine cluster=ray cluster.workers=4",
    ),
)
@stage_argument
@overrides_argument
@preset_option
def job(stage: str, overrides: tuple[str, ...], preset: str | None) -> None:
    """Submit a stage to the cluster that `cluster.jobs` names.

    The job runs this checkout's code. Its log is printed as it is written, and the command ends
    with the job's exit code. A job that was submitted before and still runs is followed.
    """
    from omniforcing.core.config import project_root
    from omniforcing.pipeline.cluster.jobs import submit_named
    from omniforcing.pipeline.config import load_config

    root = project_root()
    config = load_config(list(overrides), root, preset)
    if code := submit_named(stage, config, root, overrides):
        raise SystemExit(code)


@click.command(
    cls=Command,
    examples=(
        "omniforcing kuberay self_forcing --preset ltx2 cluster=kuberay > rayjob.yaml",
        "omniforcing kuberay latents cluster=kuberay cluster.kuberay.image=registry/image:1",
    ),
)
@stage_argument
@overrides_argument
@preset_option
def kuberay(stage: str, overrides: tuple[str, ...], preset: str | None) -> None:
    """Print a stage as a RayJob of KubeRay.

    The manifest is for `kubectl apply -f`. The volume claim holds the checkout, mounted at
    `cluster.data_root` on every pod; the image holds the packages of constraints.txt.
    """
    from yaml import safe_dump

    from omniforcing.core.config import project_root
    from omniforcing.pipeline.cluster.kuberay import manifest
    from omniforcing.pipeline.config import load_config
    from omniforcing.pipeline.declaration import read_declaration

    root = project_root()
    config = load_config(list(overrides), root, preset)
    read_declaration(stage, root, config.preset)
    print(safe_dump(manifest(stage, config, overrides), sort_keys=False), end="")
